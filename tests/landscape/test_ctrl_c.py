"""Whenever Ctrl-C comes, and however often, a model is left as it was found."""

import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.landscape import barrier, hessian, line, sharpness
from steppe.landscape.objective import restore_model

DATA = [(torch.randn(6, 4), torch.arange(6) % 3)] * 2


class Counting(nn.Module):
    """Has state of every kind that a measurement changes and puts back."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
        self.body[0].bias.requires_grad_(False)
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(self.calls))
        return self.body(x)

    def found(self) -> list[Any]:
        values = [tensor.clone() for tensor in self.state_dict().values()]
        kept = [param.requires_grad for param in self.parameters()]
        return [*values, kept, list(self.calls), [each.training for each in self.modules()]]


INSTRUMENTS: dict[str, Callable[..., Any]] = {
    "hessian": lambda m, loss: hessian(m, loss, DATA).matvec(torch.ones(48)),
    "differences": lambda m, loss: hessian(
        m, loss, DATA, product="finite-differences", train=True
    ).matvec(torch.ones(48)),
    "sharpness": lambda m, loss: sharpness(m, loss, DATA),
    "average": lambda m, loss: sharpness(m, loss, DATA, kind="average"),
    "line": lambda m, loss: line(m, loss, DATA, points=3),
    "barrier": lambda m, loss: barrier(m, Counting(), loss, DATA, points=3),
}


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("name", INSTRUMENTS)
def test_a_second_ctrl_c_does_not_stop_what_the_first_has_begun(
    name: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def interrupts(function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, with a Ctrl-C before it once the measurement has been stopped."""

        def impatient(*arguments: Any) -> Any:
            if calls >= call:
                signal.raise_signal(signal.SIGINT)
            return function(*arguments)

        return impatient

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(signal.SIGINT)
        return F.cross_entropy(outputs, targets)

    model = Counting()
    before, handler = model.found(), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(restore_model, "_refill", interrupts(restore_model._refill))
        patch.setattr(
            nn.Parameter, "requires_grad_", interrupts(Tensor.requires_grad_), raising=False
        )
        with pytest.raises(KeyboardInterrupt):
            INSTRUMENTS[name](model, loss_fn)
    for now, then in zip(model.found(), before, strict=True):
        assert torch.equal(now, then) if isinstance(now, Tensor) else now == then
    assert signal.getsignal(signal.SIGINT) is handler
