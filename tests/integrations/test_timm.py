"""timm makes steppe's optimizers by name, with its groups, Lookahead and schedulers."""

import logging
from typing import Any

import pytest
import torch
from torch import nn

import steppe
from helpers.optimizer_configs import NAMES, equal, values

pytest.importorskip("helpers.torchvision_shim")
timm = pytest.importorskip("timm")

from timm.optim import (  # noqa: E402
    Lookahead,
    create_optimizer_v2,
    get_optimizer_info,
    list_optimizers,
    param_groups_layer_decay,
)
from timm.optim import _optim_factory as factory  # noqa: E402
from timm.scheduler import CosineLRScheduler  # noqa: E402

from steppe.integrations.timm import register  # noqa: E402


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave timm's registry as it was."""
    monkeypatch.setattr(
        factory.default_registry, "_optimizers", dict(factory.default_registry._optimizers)
    )


def vit() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2}
    return timm.models.VisionTransformer(**sizes, num_classes=3)


def train(model: nn.Module, optimizer: Any, steps: int, schedule: Any = None) -> list[list[float]]:
    rates = []
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        images = torch.randn(4, 3, 16, 16, generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), torch.arange(4) % 3).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step(step + 1)
        rates.append([group["lr"] for group in optimizer.param_groups])
    return rates


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_has_its_name(name: str) -> None:
    assert register() == sorted(each.lower() for each in NAMES)
    lower = name.lower()
    assert lower in list_optimizers()
    options = {"lr": 1e-3, "weight_decay": 0.05, "layer_decay": 0.75, "betas": (0.8, 0.9)}
    optimizer = create_optimizer_v2(vit(), opt=lower, **options)
    assert type(optimizer) is getattr(steppe, name)
    assert len(optimizer.param_groups) == 8
    group = optimizer.param_groups[0]
    assert group.get("momentum", 0.9) == 0.9
    assert group.get("betas", (0.8, 0.9)) == (0.8, 0.9)
    assert get_optimizer_info(lower).description.startswith("steppe: ")
    model = vit()
    train(model, create_optimizer_v2(model, opt=f"lookahead_{lower}", lr=1e-3), 8)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_twice_is_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        first = register()
        listed = list_optimizers()
        assert register() == first
    assert list_optimizers() == listed
    assert not caplog.records


def test_a_name_that_timm_has_is_refused() -> None:
    factory.default_registry.register_alias("sgdcm", "sgd")
    before = list_optimizers()
    with pytest.raises(ValueError, match="timm has another optimizer called 'sgdcm' already"):
        register()
    assert list_optimizers() == before


@pytest.mark.parametrize("lookahead", [False, True])
def test_training_is_that_of_the_optimizer_made_by_hand(lookahead: bool) -> None:
    register()
    ours, theirs = vit(), vit()
    options = {"lr": 1e-3, "weight_decay": 0.05, "layer_decay": 0.75}
    name = "lookahead_dualadam" if lookahead else "dualadam"
    made = create_optimizer_v2(ours, opt=name, **options)
    groups = param_groups_layer_decay(theirs, 0.05, theirs.no_weight_decay(), layer_decay=0.75)
    by_hand: Any = steppe.DualAdam(groups, lr=1e-3, weight_decay=0.0)
    by_hand = Lookahead(by_hand) if lookahead else by_hand
    rates = [
        train(model, optimizer, 8, CosineLRScheduler(optimizer, 10, warmup_t=2, warmup_lr_init=0.0))
        for model, optimizer in ((ours, made), (theirs, by_hand))
    ]
    assert rates[0] == rates[1]
    assert rates[0][4][0] < rates[0][4][-1] < rates[0][2][-1] <= 1e-3
    assert equal(values([*ours.parameters()]), values([*theirs.parameters()]))


def test_sam_wraps_what_timm_makes() -> None:
    model = vit()
    sam = steppe.SAM(create_optimizer_v2(model, opt="adamw", lr=1e-3, layer_decay=0.75))
    assert len(sam.param_groups) == 8
    with pytest.raises(RuntimeError, match="without a second pass"):
        train(model, sam, 1)
