"""SAM saved, resumed and copied."""

import copy
import gc
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.sam_cases import (
    BASES,
    Make,
    bits_of_state,
    every_base,
    network,
    radius,
    same,
    train,
    values,
)
from helpers.warm_python import run
from steppe import SAM


def save(path: Path) -> None:
    """Train each base inside SAM and save it."""
    saved = {}
    for name, make in BASES.items():
        model = network()
        sam = SAM(make(model.parameters()), rho=0.2, adaptive=True)
        train(model, sam)
        saved[name] = [model.state_dict(), sam.state_dict()]
    torch.save(saved, path)


def resume(path: Path) -> dict[str, list[Tensor]]:
    """Load what :func:`save` saved and train on."""
    ends = {}
    for name, (weights, options) in torch.load(path, weights_only=True).items():
        model = network()
        sam = SAM(BASES[name](model.parameters()), rho=0.1)
        model.load_state_dict(weights)
        sam.load_state_dict(options)
        assert [sam.param_groups[0][k] for k in (radius(name), "metric")] == [0.2, "adaptive"]
        train(model, sam)
        ends[name] = values(model)
    return ends


@pytest.mark.thorough
def test_resumes_bit_for_bit_in_a_new_process(tmp_path: Path) -> None:
    save(tmp_path / "saved")
    run(__file__, tmp_path / "saved", tmp_path / "ends")
    ends = torch.load(tmp_path / "ends", weights_only=True)
    for name, make in BASES.items():
        model = network()
        train(model, SAM(make(model.parameters()), rho=0.2, adaptive=True), steps=8)
        assert same(ends[name], values(model)), name


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@every_base
@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
def test_copies_go_on_alike_and_apart(make: Make, duplicate: Callable[[Any], Any]) -> None:
    model = network(norm=nn.BatchNorm1d(4))
    sam = SAM(make(model.parameters()), rho=0.2, adaptive=True)
    train(model, sam)
    other, other_sam = duplicate((model, sam))
    assert other_sam.param_groups is other_sam.base_optimizer.param_groups
    assert other_sam.param_groups[0]["params"][0] is other[0].weight
    train(model, sam)
    assert not same(values(model), values(other))
    train(other, other_sam)
    assert same(values(model), values(other))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
def test_a_perturbed_sam_is_not_copied(duplicate: Callable[[Any], Any]) -> None:
    p = nn.Parameter(torch.ones(2))
    sam = SAM(torch.optim.SGD([p], lr=1.0))
    p.grad = torch.ones(2)
    with sam.perturbed(), pytest.raises(RuntimeError, match=r"restore\(\) first"):
        duplicate(sam)
    assert torch.equal(duplicate(sam).param_groups[0]["params"][0], torch.ones(2))


@every_base
def test_misfit_checkpoints_are_refused_and_change_nothing(make: Make) -> None:
    model = network()
    sam = SAM(make(model.parameters()))
    train(model, sam)
    rho = "sam_rho" if "sam_rho" in sam.defaults else "rho"
    good = copy.deepcopy(sam.state_dict())
    before = bits_of_state(sam)
    misfits: dict[str, dict[str, Any]] = {
        f"option '{rho}' of group 0 is missing": make(network().parameters()).state_dict(),
        f"rho={-1.0!r} is not valid": edited(good, rho, -1.0),
        "adaptive=1 is not valid": edited(good, "adaptive", 1),
        "'param_groups' is missing": {"state": good["state"]},
        "group 0 is NoneType, expected a dictionary": {**good, "param_groups": [None]},
    }
    for message, misfit in misfits.items():
        with pytest.raises(ValueError, match=message):
            sam.load_state_dict(misfit)
        assert bits_of_state(sam) == before
    with pytest.raises(ValueError, match=r"group"):  # the base's own refusal
        sam.load_state_dict({**good, "param_groups": good["param_groups"] * 2})
    assert bits_of_state(sam) == before


def edited(saved: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    saved = copy.deepcopy(saved)
    saved["param_groups"][0][name] = value
    return saved


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()
    torch.save(resume(Path(sys.argv[1])), sys.argv[2])
