"""A run that is watched is bit for bit the run that is not; and a resumed run goes on the same."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import steppe
from steppe.landscape import Monitor

LOSS = nn.CrossEntropyLoss()


class Noisy(nn.Module):
    """Draws from Python's and NumPy's generators in training, too."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            inputs = inputs + 0.01 * random.random() + 0.01 * np.random.random()  # noqa: NPY002
        return inputs


class Run:
    """A run with dropout, BatchNorm, and a loader that shuffles by the global generator."""

    def __init__(self, make: Any, *, is_watched: bool, **options: Any) -> None:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        self.model = nn.Sequential(
            nn.Linear(6, 16),
            nn.BatchNorm1d(16),
            Noisy(),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(16, 3),
        ).double()
        inputs = torch.randn(48, 6, generator=torch.Generator().manual_seed(1)).double()
        targets = torch.randint(3, (48,), generator=torch.Generator().manual_seed(2))
        self.loader = DataLoader(TensorDataset(inputs, targets), batch_size=16, shuffle=True)
        self.optimizer = make(self.model.parameters())
        self.monitor = None
        if is_watched:
            options = {"every": 2, **options}
            self.monitor = Monitor(self.model, LOSS, self.loader, self.optimizer, **options)

    def epoch(self) -> None:
        for inputs, targets in self.loader:
            self.optimizer.zero_grad()
            LOSS(self.model(inputs), targets).backward()
            if isinstance(self.optimizer, steppe.SAM):
                with self.optimizer.perturbed():
                    LOSS(self.model(inputs), targets).backward()
            self.optimizer.step()
            if self.monitor is not None:
                self.monitor.step()

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "torch": torch.get_rng_state(),
            "gradients": [param.grad for param in self.model.parameters()],
            "python": random.getstate(),
            "numpy": list(np.random.get_state()),  # noqa: NPY002
            "modes": [module.training for module in self.model.modules()],
            "versions": [
                each._version for each in (*self.model.parameters(), *self.model.buffers())
            ],
        }


def assert_same(one: Any, other: Any) -> None:
    """Bit for bit, in nested containers."""
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, np.ndarray):
        assert (one == other).all()
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "dualadamcm": lambda p: steppe.DualAdamCM(p, lr=0.01, total_steps=20),
    "sam": lambda p: steppe.SAM(torch.optim.SGD(p, lr=0.05, momentum=0.9)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("train", [False, True])
def test_a_watched_run_is_the_same(name: str, train: bool) -> None:
    plain = Run(OPTIMIZERS[name], is_watched=False)
    for _ in range(3):
        plain.epoch()
    expected = plain.state()
    watched = Run(OPTIMIZERS[name], is_watched=True, train=train)
    for _ in range(3):
        watched.epoch()
    assert watched.monitor is not None
    assert [row.step for row in watched.monitor.history] == [2, 4, 6, 8]
    assert not watched.monitor.history[-1].reasons
    assert_same(watched.state(), expected)


def test_a_graph_of_before_can_be_differentiated_afterwards() -> None:
    """What is put back counts no version: autograd would refuse the saved parameters."""
    run = Run(OPTIMIZERS["adamw"], is_watched=True)
    run.epoch()
    inputs, targets = next(iter(run.loader))
    loss = LOSS(run.model.eval()(inputs), targets)
    run.monitor.measure()
    loss.backward()
    assert run.model[0].weight.grad is not None


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_resumed_run_goes_on_the_same(epochs: int, tmp_path: Path) -> None:
    """Where the next step is measured, and its weights before are in the state, and where not."""
    whole = Run(OPTIMIZERS["dualadamcm"], is_watched=True)
    for number in range(4):
        if number == epochs:
            state = {
                "model": whole.model.state_dict(),
                "optimizer": whole.optimizer.state_dict(),
                "monitor": whole.monitor.state_dict(),
                "torch": torch.get_rng_state(),
            }
            torch.save(state, tmp_path / "run.pt")
            others = random.getstate(), np.random.get_state()  # noqa: NPY002
        whole.epoch()
    end = whole.state()

    resumed = Run(OPTIMIZERS["dualadamcm"], is_watched=True)
    loaded = torch.load(tmp_path / "run.pt", weights_only=True)
    assert (loaded["monitor"]["before"] is not None) == (3 * epochs % 2 == 1)
    resumed.model.load_state_dict(loaded["model"])
    resumed.optimizer.load_state_dict(loaded["optimizer"])
    resumed.monitor.load_state_dict(loaded["monitor"])
    torch.set_rng_state(loaded["torch"])
    random.setstate(others[0])
    np.random.set_state(others[1])  # noqa: NPY002
    for _ in range(epochs, 4):
        resumed.epoch()
    for part in ("model", "optimizer", "torch", "python", "numpy"):
        assert_same(resumed.state()[part], end[part])
    rows, expected = ([vars(row) for row in run.monitor.history] for run in (resumed, whole))
    for row in (*rows, *expected):
        row["seconds"] = 0.0
    np.testing.assert_equal(rows, expected)


def test_a_state_goes_on_counting_time() -> None:
    times = iter(range(100))
    run = Run(OPTIMIZERS["adamw"], is_watched=True, every=100, clock=lambda: next(times))
    run.epoch()
    state = run.monitor.state_dict()
    other = Run(OPTIMIZERS["adamw"], is_watched=True, every=100, clock=lambda: next(times))
    other.monitor.load_state_dict(state)
    assert other.monitor.cost() == run.monitor.cost()
    assert state["budget"]["training_seconds"] == 2.0
    # The pause counts for nothing, and so does the first step after it.
    other.epoch()
    assert other.monitor.state_dict()["budget"]["training_seconds"] == 4.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("vectors"), "state has no 'vectors'"),
        (lambda state: state["history"].append({"step": 3}), "row 1 of the history"),
        (
            lambda state: state["vectors"].update(lambda_max=torch.ones(3)),
            r"an eigenvector 'lambda_max' of shape \(3,\), and the parameters have 195 elements",
        ),
        (lambda state: state.update(before=[torch.ones(2)]), "weights of other shapes"),
        (lambda state: state.update(before=[3]), "weights of other shapes"),
        (lambda state: state.update(budget={}), "the budget in state is not the numbers steps"),
        (lambda state: state["budget"].update(steps="5"), "the budget in state is not the numbers"),
        (lambda state: state.update(samples=2.5), "state has 2.5 as 'samples'"),
        (lambda state: state.update(samples=True), "state has True as 'samples'"),
        (lambda state: state.update(samples=0), "state has 0 as 'samples'"),
        (lambda state: state.update(vectors=3), "state has 3 as 'vectors'"),
        (lambda state: state["vectors"].update(lambda_max=3), r"of shape \(\), and the parameters"),
        (lambda state: state.update(history=None), "state has None as 'history'"),
        (lambda state: state["history"][0].update(values=3), "row 0 of the history"),
        (lambda state: state.update(is_next="no"), "state has 'no' as 'is_next'"),
    ],
)
def test_wrong_states_are_refused(change: Any, message: str) -> None:
    run = Run(OPTIMIZERS["adamw"], is_watched=True)
    run.epoch()
    state = run.monitor.state_dict()
    before = run.monitor.to_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        run.monitor.load_state_dict(state)
    np.testing.assert_equal(run.monitor.to_dict(), before)


def test_what_is_no_state_is_refused() -> None:
    run = Run(OPTIMIZERS["adamw"], is_watched=True)
    with pytest.raises(TypeError, match=r"state must be what .* returns, got None"):
        run.monitor.load_state_dict(None)
