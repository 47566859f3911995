"""The tensors that one step touches, sorted into batches that one kernel can run."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steppe.engines.kernel import KEYS, Kernel

Group = dict[str, Any]


class Row(NamedTuple):
    """One parameter in this step. Complex tensors stand here as their real views."""

    param: Tensor
    grad: Tensor
    state: dict[str, Tensor]
    group: Group

    @property
    def capacity(self) -> int:
        """Number of slots of the parameter's buffer; 0 without one."""
        return self.state[KEYS].numel() if KEYS in self.state else 0


@dataclass(frozen=True)
class Batch:
    """Rows that share a kernel, a device and what is asked of the engine."""

    kernel: Kernel
    device: torch.device
    fused: bool | None
    capturable: bool
    differentiable: bool
    rows: list[Row]

    @property
    def on_device(self) -> bool:
        """Whether scalars and decisions must stay tensors.

        So it is under CUDA graphs, where gradients flow through the step, and where a decision
        would otherwise have to be read back from an accelerator.
        """
        reads_accelerator = self.kernel.buffer is not None and self.device.type != "cpu"
        return self.capturable or self.differentiable or reads_accelerator


def real(tensor: Tensor) -> Tensor:
    """Return a complex tensor's real view, and any other tensor itself."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def row(param: Tensor, grad: Tensor, state: dict[str, Tensor], group: Group) -> Row:
    """Make the row of one parameter."""
    if param.is_complex():
        param, grad = real(param), real(grad)
        state = {name: real(value) for name, value in state.items()}
    return Row(param, grad, state, group)


def plan(rows: Iterable[tuple[Kernel, Row]]) -> list[Batch]:
    """Sort rows into batches, keeping their order within each."""
    batches: dict[tuple[Any, ...], Batch] = {}
    for kernel, row in rows:
        group = row.group
        key = (
            kernel,
            row.param.device,
            group["fused"],
            group["capturable"],
            group["differentiable"],
        )
        if key not in batches:
            batches[key] = Batch(*key, rows=[])
        batches[key].rows.append(row)
    return list(batches.values())
