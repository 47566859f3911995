"""fastai's Learner trains with steppe as a loop of one's own does, SAM's passes included."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import steppe
from helpers.optimizer_configs import equal, values

pytest.importorskip("helpers.torchvision_shim")
pytest.importorskip("fastcore")
# It compiles functions with torch.jit.script, which is deprecated.
with warnings.catch_warnings(action="ignore"):
    pytest.importorskip("fastai.learner")
    import cloudpickle
    import fastai.callback.schedule
    from fastai.callback import fp16
    from fastai.callback.core import Callback
    from fastai.callback.mixup import MixUp
    from fastai.callback.rnn import ModelResetter
    from fastai.callback.training import GradientAccumulation, GradientClip
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.optimizer import OptimWrapper

from steppe.integrations.fastai import FastaiSAM

_GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(48, 6, generator=_GENERATOR)
TARGETS = torch.randint(3, (48,), generator=_GENERATOR)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def sam_of(params: Any, **options: Any) -> steppe.SAM:
    return steppe.SAM(params, torch.optim.AdamW, rho=0.1, weight_decay=0.0, **options)


def learner(opt: Callable[..., Any] = sam_of, *cbs: Any, net: nn.Module | None = None) -> Learner:
    data = torch.utils.data.TensorDataset(INPUTS, TARGETS)
    loaders = DataLoaders(DataLoader(data, bs=8), DataLoader(data, bs=8), device="cpu")
    made = Learner(
        loaders,
        network() if net is None else net,
        loss_func=F.cross_entropy,
        opt_func=partial(OptimWrapper, opt=opt),
        cbs=list(cbs),
        wd=0.0,
        train_bn=True,
    )
    made.remove_cbs([each for each in made.cbs if type(each).__name__ == "ProgressCallback"])
    return made


def fit(made: Learner, epochs: int = 2, lr: float = 1e-2) -> list[Tensor]:
    with made.no_logging():
        made.fit(epochs, lr=lr)
    return values([*made.model.parameters()])


def batches(epochs: int = 2) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(epochs):
        yield from zip(INPUTS.split(8), TARGETS.split(8), strict=True)


def by_hand(
    make: Callable[..., steppe.SAM] = sam_of,
    group: int = 1,
    clip: float | None = None,
    steps: int | None = None,
) -> tuple[list[Tensor], steppe.SAM]:
    """Train as the Learner does, each step with ``group`` batches, their losses divided by it."""
    model = network()
    sam = make(model.parameters(), lr=1e-2)

    def run(found: list[tuple[Tensor, Tensor]]) -> None:
        for inputs, targets in found:
            (F.cross_entropy(model(inputs), targets) / group).backward()

    for held in islice(zip(*[batches()] * group, strict=True), steps):
        sam.zero_grad()
        if sam.has_two_passes:
            run(held)
        if sam.is_active:
            with sam.perturbed():
                run(held)
        elif not sam.has_two_passes:
            run(held)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        sam.step()
    return values([*model.parameters()]), sam


@pytest.mark.parametrize("optimizer", [steppe.DualAdam, steppe.AdamCM, steppe.SGDCM])
def test_other_optimizers_need_no_callback(optimizer: Callable[..., Any]) -> None:
    found = fit(learner(optimizer))
    model = network()
    alone = optimizer(model.parameters(), lr=1e-2)
    for inputs, targets in batches():
        alone.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        alone.step()
    assert equal(found, values([*model.parameters()]))


FAMILY = {
    "gradient": {},
    "adaptive": {"metric": "adaptive"},
    "momentum": {"direction": "momentum"},
    "random": {"direction": "random"},
    "late": {"start": 0.5, "total_steps": 12},
    "momentum, late": {"direction": "momentum", "start": 0.5, "total_steps": 12},
}


@pytest.mark.parametrize("options", FAMILY.values(), ids=FAMILY)
def test_sam_is_that_of_a_loop_of_ones_own(options: dict[str, Any]) -> None:
    make = partial(sam_of, **options)
    truth, sam = by_hand(make)
    made = learner(make, FastaiSAM())
    torch.manual_seed(1)
    assert equal(fit(made), truth)
    assert made.opt.opt.diagnostics() == sam.diagnostics()
    assert "_do_one_batch" not in vars(made)


@pytest.mark.parametrize("direction", ["gradient", "momentum"])
def test_batches_may_be_accumulated(direction: str) -> None:
    make = partial(sam_of, direction=direction)
    # fastai counts samples: steps of two batches, whose losses weigh one half.
    found = fit(learner(make, FastaiSAM(), GradientAccumulation(16)))
    truth, sam = by_hand(make, group=2)
    assert sam.diagnostics()["ascents"] == 6.0
    assert equal(found, truth)


def test_gradients_are_clipped_after_the_second_pass() -> None:
    found = fit(learner(sam_of, FastaiSAM(), GradientClip(0.05)))
    assert equal(found, by_hand(clip=0.05)[0])
    assert not equal(found, by_hand()[0])


def test_what_is_recorded_is_the_loss_before_the_perturbation() -> None:
    recorded: list[float] = []

    class Note(Callback):
        run_valid = False

        def after_batch(self) -> None:
            recorded.append(self.learn.loss.item())

    fit(learner(sam_of, FastaiSAM(), Note()), epochs=1)
    model = network()
    assert recorded[0] == F.cross_entropy(model(INPUTS[:8]), TARGETS[:8]).item()


def test_both_passes_see_the_same_mixture() -> None:
    seen: list[Tensor] = []

    class Seen(nn.Sequential):
        def forward(self, inputs: Tensor) -> Tensor:
            if self.training:
                seen.append(inputs.clone())
            return super().forward(inputs)

    made = learner(sam_of, FastaiSAM(), MixUp(), net=Seen(*network()))
    made.loss_func = CrossEntropyLossFlat()
    fit(made, epochs=1)
    assert len(seen) == 12
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(seen[0], INPUTS[:8])


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_mixed_precision(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU: fastai asks for CUDA by name."""
    monkeypatch.setattr(fp16, "autocast", lambda _, **k: torch.autocast("cpu", **k))
    monkeypatch.setattr(fp16, "GradScaler", lambda _, **k: torch.amp.GradScaler("cpu", **k))
    found = fit(learner(sam_of, FastaiSAM(), fp16.MixedPrecision(dtype)), epochs=1)

    model = network()
    sam = sam_of(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == "fp16")
    half = torch.float16 if dtype == "fp16" else torch.bfloat16

    def run(inputs: Tensor, targets: Tensor) -> None:
        with torch.autocast("cpu", half):
            outputs = model(inputs)
        scaler.scale(F.cross_entropy(outputs.float(), targets)).backward()

    for batch in batches(1):
        sam.zero_grad()
        run(*batch)
        with sam.perturbed():
            run(*batch)
        scaler.step(sam)
        scaler.update()
    assert equal(found, values([*model.parameters()]))
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("direction", ["gradient", "momentum"])
def test_an_error_in_a_perturbed_pass_restores(direction: str) -> None:
    passes = {"gradient": 4, "momentum": 2}[direction]

    class Failing(nn.Sequential):
        count = 0

        def forward(self, inputs: Tensor) -> Tensor:
            self.count += 1
            if self.count == passes:
                raise KeyboardInterrupt
            return super().forward(inputs)

    make = partial(sam_of, direction=direction)
    model = Failing(*network())
    made = learner(make, FastaiSAM(), net=model)
    with pytest.raises(KeyboardInterrupt):
        fit(made)
    truth, _ = by_hand(make, steps=1)
    assert equal(values([*model.parameters()]), truth)
    # Another fit works after it, and one without the callback does what the optimizer says.
    fit(made)
    assert model.count > passes
    model.count = 0
    with pytest.raises(KeyboardInterrupt):
        fit(made)
    made.remove_cb(FastaiSAM)
    with pytest.raises(RuntimeError, match=r"SAM\.step\(\) without"):
        fit(made)


@pytest.mark.filterwarnings("ignore:numpy.core is deprecated")
def test_schedules_saving_and_loading_work(tmp_path: Any) -> None:
    make = partial(sam_of, betas=(0.9, 0.99))
    made = learner(make, FastaiSAM())
    made.path = tmp_path
    with made.no_logging():
        made.fit_one_cycle(1, 1e-2)
    made.save("half")
    # As Learner.export writes it.
    assert cloudpickle.loads(cloudpickle.dumps(made.cbs)).attrgot("order") == made.cbs.attrgot(
        "order"
    )
    other = learner(make, FastaiSAM())
    other.path = tmp_path
    other.create_opt()
    other.load("half")
    assert equal(fit(made, 1), fit(other, 1))


class Plain(Callback):
    """A callback that has nothing to do with it."""


@pytest.mark.parametrize(
    ("opt", "cbs", "error", "message"),
    [
        (steppe.DualAdam, [], TypeError, "OptimWrapper of DualAdam is no SAM: expected"),
        (sam_of, [ModelResetter()], ValueError, "does not fit ModelResetter, whose model"),
        (
            sam_of,
            [MixUp(), GradientAccumulation(16)],
            ValueError,
            "does not fit MixUp with GradientAccumulation",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    opt: Any, cbs: list[Any], error: type[Exception], message: str
) -> None:
    made = learner(opt, FastaiSAM(), Plain(), *cbs)
    with pytest.raises(error, match=message):
        fit(made)
    assert equal(values([*made.model.parameters()]), values([*network().parameters()]))


def test_one_pass_takes_models_with_state() -> None:
    model = network()
    model.reset = lambda: None
    make = partial(sam_of, direction="momentum")
    fit(learner(make, FastaiSAM(), ModelResetter(), net=model), epochs=1)


def test_without_the_callback_sam_says_so() -> None:
    with pytest.raises(RuntimeError, match="without a second pass"):
        fit(learner(sam_of))
    assert fastai.callback.schedule
