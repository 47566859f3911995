"""Add an engine: NumPy in float64, which runs every rule that has no buffer.

In the package an engine is a folder of src/steppe/_engines, and a name in the list of
src/steppe/_engines/dispatch.py. It knows tensors and number formats, and no method::

    python examples/extending/add_an_engine.py
"""

import numpy as np
import torch
from torch import Tensor

import steppe
from steppe._engines import Engine, ParamBatch, bind, dispatch
from steppe._engines.base.norms import Norms
from steppe._engines.base.scalars import scalars


class NumpyEngine:
    """What the protocol ``Engine`` asks for. The engines of the package are modules instead."""

    name = "numpy"
    #: A GradScaler's scale comes as a number, not as a tensor on the device.
    reads_amp = False

    def objection(self, batch: ParamBatch) -> str | None:
        """Say why this engine cannot run a batch, or None: dispatch then asks the next one."""
        if any(row.param.device.type != "cpu" for row in batch.rows):
            return "NumPy's arrays are on the CPU"
        if any(row.param.dtype not in (torch.float32, torch.float64) for row in batch.rows):
            return "NumPy has float32 and float64"
        if batch.method.buffer is not None or batch.method.mean_square is not None:
            return "it has no buffers and takes no means"
        if batch.request.capturable or batch.request.differentiable or batch.rounds_stochastically:
            return "a step is plain arithmetic in full precision"
        return None

    def prepare(self, batch: ParamBatch) -> None:
        """Note where the step's tensors lie, which NumPy's arrays know by themselves."""

    def square_sums(self, batch: ParamBatch) -> Tensor:
        """Sum the squares of each row's gradient, and of all: for norms over several batches."""
        sums = torch.stack([grad.double().square().sum() for grad in batch.grads])
        return torch.cat([sums, sums.sum(0, keepdim=True)])

    def step(self, batch: ParamBatch, norms: Norms) -> None:
        """Load, call the rule, store: of every row of the batch, in place."""
        rule = bind(batch.method.rule, np)
        lines = zip(batch.rows, batch.grads, scalars(batch), strict=True)
        for row, grad, (factor, *values) in lines:
            tensors = [row.param.detach(), *(row.part(name) for name in batch.method.state)]
            p, *state = (tensor.numpy().astype(np.float64) for tensor in tensors)
            # The factor is −1 for maximize, and 1 over a GradScaler's scale.
            g = grad.numpy().astype(np.float64) * factor
            for tensor, new in zip(tensors, rule(p, g, *state, *values), strict=True):
                tensor.numpy()[...] = new


def trajectory(fused: bool | None) -> tuple[str, Tensor]:
    """Take 100 steps down a bowl; return the engine's name and where they end."""
    p = torch.linspace(-2.0, 2.0, 101, dtype=torch.float64, requires_grad=True)
    optimizer = steppe.DualAdam([p], lr=0.05, switch_rate=0.02, fused=fused)
    for _ in range(100):
        p.grad = torch.sin(3.0 * p.detach()) + p.detach()
        optimizer.step()
    return optimizer.engine, p.detach()


def main() -> None:
    """Register the engine before the others, and compare a run on it with torch's own."""
    engine: Engine = NumpyEngine()
    before = dispatch.FUSED
    dispatch.FUSED = (engine, *before)
    try:
        name, found = trajectory(fused=None)
        # Critical momenta have a buffer: this engine objects, and another one steps them.
        other = steppe.AdamCM([torch.ones(2, requires_grad=True)]).engine
    finally:
        dispatch.FUSED = before
    assert name == "numpy"
    assert other == "cpu"
    plain, expected = trajectory(fused=False)
    assert plain == "eager"
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    print(
        f"{name} and {plain} agree to {(found - expected).abs().max():.0e}; AdamCM went to {other}"
    )


if __name__ == "__main__":
    main()
