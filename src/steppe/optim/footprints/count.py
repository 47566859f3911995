"""Count the bytes that each device holds and sends: parameters, gradients, optimizer state.

Here are the public :func:`footprint` and the arithmetic of how FSDP2 cuts tensors and what a step
sends. The state that it counts is found by ``meta_optimizer``.
"""

import math
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from steppe._engines import block_count
from steppe.optim._state import StateEntry, has_param_shape, is_scale
from steppe.optim.footprints import meta_optimizer
from steppe.optim.footprints.costs import ByteCounts, Footprint, StrategyCosts
from steppe.optim.sam import SAM

if TYPE_CHECKING:  # builds of torch without distributed have none
    from torch.distributed.fsdp import MixedPrecisionPolicy

#: The shape of one parameter.
Shape = tuple[int, ...]
#: A number of parameters, or their shapes: in any order, or by name.
Counts = int | Iterable[Shape] | Mapping[str, Shape]


def footprint(
    model_or_counts: Module | Counts,
    optimizer: Optimizer | meta_optimizer.OptimizerFactory,
    world_size: int,
    *,
    dtype: torch.dtype | None = None,
    mp_policy: "MixedPrecisionPolicy | None" = None,
) -> Footprint:
    """Count the bytes that training holds on each of many devices, and sends per step.

    Experimental. Nothing is allocated: models may be on the meta device.

    Held are parameters, gradients and the optimizer's state; SAM's copy of the parameters during
    the second pass counts as state. Activations, module buffers, and parameters that FSDP2 gathers
    for a layer's pass are not counted. Under FSDP2 each tensor is cut along its first dimension
    into pieces of ⌈rows/W⌉ rows, W being ``world_size``: the first device holds the most.

    With P bytes of parameters and G bytes of gradients, each device sends in a step::

        FSDP2:  2·P·(W−1)/W  all-gathers, in the forward and in the backward pass
                  G·(W−1)/W  reduce-scatter
        DDP:    2·G·(W−1)/W  all-reduce, as a ring: a reduce-scatter and an all-gather

    where FSDP2 pads all pieces to ⌈rows/W⌉ rows. SAM, with its second pass, sends twice as much;
    under DDP only if its first pass does not run under ``no_sync``.

    Under FSDP2 the optimizer itself sums numbers over all devices, 8 bytes each (``message``):

    * critical momenta or gradients: one, the squared norm of all gradients, whatever the model;
    * ``scope="tensor"`` and ``DualAdam(scale_free=True)``: n + 1 for n tensors, one for each and
      that of all;
    * SAM: one more, for its own norm.

    Other optimizers of this library send nothing. What optimizers of other libraries send is not
    counted.

    Parameters
    ----------
    model_or_counts
        A model; parameters with ``requires_grad=False`` have neither gradient nor state. Or the
        shapes of the parameters, in a list or a dict by name. Or the number of parameters, counted
        as one vector.
    optimizer
        A class, or a function that makes an optimizer of parameters: it is called with parameters
        on the meta device, where there is no kernel for ``fused=True``; what it raises is passed
        on. Or an optimizer, which stays as it is: that of the model, or one with a single group,
        whose options then apply to all parameters. The state of another library's optimizer is
        found by a step on the meta device.
    world_size
        W, the number of devices; ≥ 1.
    dtype
        Number format of the parameters. None is the model's own, or torch's default dtype for
        shapes and numbers. Default: None.
    mp_policy
        The ``MixedPrecisionPolicy`` of ``fully_shard``, with the formats in which FSDP2 sends. None
        sends parameters and gradients in the parameters' format. Default: None.

    Returns
    -------
    Footprint
        Bytes on the fullest device and on all together, and bytes sent, for FSDP2 and for DDP.

    Raises
    ------
    TypeError
        An argument is of another type than those above.
    ValueError
        ``world_size`` is not an integer ≥ 1; the optimizer has several groups of other parameters,
        or is an ``Offload``; or another library's optimizer cannot step on the meta device.

    Notes
    -----
    Without ``reshard_after_forward=True`` the outermost ``fully_shard`` keeps its parameters
    gathered between forward and backward: they are sent once, not twice. Without
    ``gradient_as_bucket_view=True`` DDP holds the gradients a second time, in its buckets.

    References
    ----------
    Rajbhandari et al., *ZeRO: Memory Optimizations Toward Training Trillion Parameter Models*, SC
    2020, arXiv 1910.02054, for memory and traffic; Thakur, Rabenseifner, Gropp, *Optimization of
    Collective Communication Operations in MPICH*, IJHPCA 2005, for collectives of (W−1)/W.

    Examples
    --------
    >>> import torch, steppe
    >>> with torch.device("meta"):
    ...     model = torch.nn.Linear(4096, 4096)
    >>> print(steppe.optim.footprint(model, steppe.AdamCM, world_size=8))
    16,781,312 parameters, 8 devices
    held             FSDP2, each    FSDP2, all     DDP, each
      parameters        8.00 MiB     64.02 MiB     64.02 MiB
      gradients         8.00 MiB     64.02 MiB     64.02 MiB
      optimizer        64.02 MiB    512.13 MiB    512.13 MiB
    sent per step    FSDP2, each                   DDP, each
      parameters       117.47 MB                         0 B
      gradients         58.73 MB                   117.47 MB
      optimizer             14 B                         0 B
    """
    _check_arguments(world_size, dtype, mp_policy)
    originals = list(_parameters(model_or_counts))
    params = [_on_meta(param, dtype) for param in originals]
    made = meta_optimizer.optimizer_on_meta(optimizer, originals, params)
    state, message = meta_optimizer.state_of(made), meta_optimizer.message_bytes(made)
    passes = 2 if isinstance(made, SAM) else 1
    kinds = Counter(_ParamKind.of(param, state.get(param, {}), passes - 1) for param in params)
    return Footprint(
        numel=sum(param.numel() for param in params),
        world_size=world_size,
        message=message,
        fsdp=_sharded(kinds, world_size, passes, message, mp_policy),
        ddp=_replicated(kinds, world_size, passes),
    )


def _check_arguments(world_size: Any, dtype: Any, policy: Any) -> None:
    if not isinstance(world_size, int) or isinstance(world_size, bool) or world_size < 1:
        raise ValueError(f"world_size={world_size!r} is not valid: expected an integer ≥ 1")
    if not isinstance(dtype, torch.dtype | None):
        raise TypeError(f"dtype={dtype!r} is not valid: expected a torch.dtype or None")
    if policy is not None and not hasattr(policy, "reduce_dtype"):
        raise TypeError(
            f"mp_policy={policy!r} is not valid: expected FSDP2's MixedPrecisionPolicy or None"
        )


class _ParamKind(NamedTuple):
    """What counts of a parameter and its state. Parameters of one kind are counted together."""

    shape: Shape
    dtype: torch.dtype
    is_trained: bool
    state: tuple[tuple[str, StateEntry], ...]
    #: How many copies of the parameter the optimizer holds during a step.
    copies: int

    @classmethod
    def of(cls, param: Parameter, state: dict[str, StateEntry], copies: int) -> Self:
        """Return the kind of a parameter, given the layout of its state."""
        shape = tuple(param.shape)
        return cls(shape, param.dtype, param.requires_grad, tuple(state.items()), copies)

    def held(self, elements: int) -> tuple[int, int, int]:
        """Return the bytes of a number of its elements, of their gradients and of their state."""
        own = elements * self.dtype.itemsize
        trained = own * self.is_trained
        state = sum(
            self._count(name, entry, elements) * entry.dtype.itemsize for name, entry in self.state
        )
        return own, trained, state + self.copies * trained

    def _count(self, name: str, entry: StateEntry, elements: int) -> int:
        if is_scale(name):
            return block_count(elements)
        return elements if has_param_shape(name, entry, self.shape) else math.prod(entry.shape)


# Pairs: a number of elements, and how many devices hold so many.
Cut = list[tuple[int, int]]


def _cut_like_fsdp2(shape: Shape, devices: int) -> Cut:
    """Cut a tensor as ``fully_shard`` does; the largest share comes first."""
    rows, row_size = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    # Each device takes ⌈rows/devices⌉ rows as long as there are some; the last may take fewer.
    most = -(-rows // devices)
    full, rest = divmod(rows, most) if most else (0, 0)
    filled = full + (rest > 0)
    cut = [(most * row_size, full), (rest * row_size, filled - full), (0, devices - filled)]
    return [(elements, count) for elements, count in cut if count]


def _sharded(
    kinds: Counter[_ParamKind],
    devices: int,
    passes: int,
    message: int,
    policy: "MixedPrecisionPolicy | None",
) -> StrategyCosts:
    cuts = {kind: _cut_like_fsdp2(kind.shape, devices) for kind in kinds}
    gathered = reduced = 0
    for kind, number in kinds.items():
        largest = number * cuts[kind][0][0]
        gather, reduce = _formats(kind.dtype, policy)
        gathered += largest * gather.itemsize
        reduced += largest * reduce.itemsize * kind.is_trained
    # FSDP2 pads the smaller pieces to the size of the first device's, so all send the same.
    others = passes * (devices - 1)
    sent = ByteCounts(2 * others * gathered, others * reduced, _ring_bytes(message, devices))
    return StrategyCosts(*_held(kinds, cuts), sent)


def _replicated(kinds: Counter[_ParamKind], devices: int, passes: int) -> StrategyCosts:
    cuts = {kind: [(math.prod(kind.shape), devices)] for kind in kinds}
    device, everywhere = _held(kinds, cuts)
    return StrategyCosts(
        device, everywhere, ByteCounts(0, passes * _ring_bytes(device.gradients, devices), 0)
    )


def _held(kinds: Counter[_ParamKind], cuts: dict[_ParamKind, Cut]) -> tuple[ByteCounts, ByteCounts]:
    """Return the bytes on the fullest device, and on all devices together."""
    device, everywhere = [0, 0, 0], [0, 0, 0]
    for kind, number in kinds.items():
        for i, (elements, count) in enumerate(cuts[kind]):
            for column, size in enumerate(kind.held(elements)):
                device[column] += number * size * (i == 0)
                everywhere[column] += number * size * count
    return ByteCounts(*device), ByteCounts(*everywhere)


def _ring_bytes(size: int, devices: int) -> int:
    """Return the bytes that each device sends in a ring all-reduce of ``size`` bytes."""
    return -(-2 * size * (devices - 1) // devices)


def _formats(
    own: torch.dtype, policy: "MixedPrecisionPolicy | None"
) -> tuple[torch.dtype, torch.dtype]:
    """Return the formats in which FSDP2 gathers a parameter and reduces its gradient."""
    if policy is None:
        return own, own
    gather = policy.param_dtype or own
    return gather, policy.reduce_dtype or gather


# The parameters


def _parameters(source: Any) -> Iterator[Tensor]:
    if isinstance(source, Module):
        yield from source.parameters()
        return
    if isinstance(source, int) and not isinstance(source, bool):
        source = [(source,)]
    shapes = source.values() if isinstance(source, Mapping) else source
    if isinstance(shapes, str) or not isinstance(shapes, Iterable):
        raise TypeError(
            f"model_or_counts={source!r} is not valid: expected a model, the shapes of its "
            "parameters, or their number"
        )
    for shape in shapes:
        if not _is_shape(shape):
            raise TypeError(
                f"model_or_counts has {reprlib.repr(shape)}: expected a model, a number of "
                "parameters, or their shapes, each a tuple of integers ≥ 0"
            )
        yield torch.empty(shape, device="meta", requires_grad=True)


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, tuple | list) and all(
        isinstance(size, int) and size >= 0 for size in shape
    )


def _on_meta(param: Tensor, dtype: torch.dtype | None) -> Parameter:
    """Return a parameter on the meta device; for a sharded one, of the whole tensor's shape."""
    empty = torch.empty(param.shape, dtype=dtype or param.dtype, device="meta")
    return Parameter(empty, requires_grad=param.requires_grad)
