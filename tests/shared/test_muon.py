"""Muon for hidden matrices and AdamW for the rest, against torch's own, stepped one by one."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from steppe._shared.muon import MuonWithAdamW
from steppe._shared.recipes import find_recipe


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 6, 3),
        nn.Flatten(),
        nn.Linear(96, 8),
        nn.Linear(8, 8),
        nn.Linear(8, 2),
    )


HIDDEN = ["2.weight", "4.weight", "5.weight"]


def fill_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in model.parameters():
        param.grad = torch.randn(param.shape, generator=generator)


def test_each_part_steps_as_torchs_own() -> None:
    """Newton–Schulz runs in bfloat16, whose rounding differs with the shape of a batch."""
    lr, decay, steps = 0.01, 0.1, 4
    model, other = make_model(), make_model()
    first = {name: param.detach().clone() for name, param in model.named_parameters()}
    optimizer = MuonWithAdamW(model.parameters(), lr=lr, weight_decay=decay)
    named = dict(other.named_parameters())
    # torch's takes two dimensions only.
    flat = {name: nn.Parameter(named[name].detach().flatten(1)) for name in HIDDEN}
    rest = {name: param for name, param in named.items() if name not in HIDDEN}
    muon = torch.optim.Muon(flat.values(), lr, decay, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest.values(), lr, (0.9, 0.95), eps=1e-10, weight_decay=decay)
    for seed in range(steps):
        fill_gradients(model, seed)
        fill_gradients(other, seed)
        for name, param in flat.items():
            param.grad = named[name].grad.flatten(1)
        for each in (optimizer, muon, adamw):
            each.step()
    for name, param in model.named_parameters():
        if name in HIDDEN:
            expected, tolerance = flat[name].view_as(param), 0.02
        else:
            expected, tolerance = rest[name], 1e-5
        moved = (expected - first[name]).norm()
        assert moved > 0
        assert (param - expected).norm() < tolerance * moved, name


@pytest.mark.parametrize(
    ("model", "hidden"),
    [
        (nn.Linear(4, 2), []),
        (nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), []),
        (nn.Sequential(nn.Embedding(9, 4), nn.LSTM(4, 3), nn.Linear(3, 9)), [(12, 4), (12, 3)]),
        # Tokens and positions of shape (1, n, d) are no matrices.
        (
            nn.ParameterList(
                [torch.ones(1, 1, 4), torch.ones(1, 5, 4), *(torch.ones(4, n) for n in (5, 6, 7))]
            ),
            [(4, 6)],
        ),
    ],
    ids=["one layer", "two layers", "text", "transformer"],
)
def test_hidden_is_what_lies_between_the_first_and_the_last_matrix(model, hidden) -> None:
    groups = MuonWithAdamW(model.parameters()).param_groups
    muons = [tuple(p.shape) for group in groups if group["use_muon"] for p in group["params"]]
    assert muons == hidden
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_it_is_one_optimizer_for_schedules_scalers_and_checkpoints() -> None:
    def step(model: nn.Module, optimizer, schedule, seed: int) -> None:
        fill_gradients(model, seed)
        optimizer.step()
        schedule.step()

    def begin(model: nn.Module):
        optimizer = find_recipe("muon").build(model.parameters(), {"lr": 0.1}, 10)
        return model, optimizer, LambdaLR(optimizer, lambda step: 1 / (step + 1))

    whole, resumed = begin(make_model()), begin(make_model())
    step(*whole, 0)
    assert {group["lr"] for group in whole[1].param_groups} == {0.05}
    for one, other in zip(whole, resumed, strict=True):
        other.load_state_dict(deepcopy(one.state_dict()))
    step(*whole, 1)
    step(*resumed, 1)
    for one, other in zip(whole[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(one, other)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = whole[0][2].weight.detach().clone()
    scaler.scale(whole[0](torch.ones(2, 1, 8, 8)).square().mean()).backward()
    whole[0][0].bias.grad.fill_(torch.inf)
    scaler.step(whole[1])
    assert torch.equal(whole[0][2].weight, before)
