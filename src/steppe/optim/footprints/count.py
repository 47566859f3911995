"""Counting what is held and what is sent: parameters, gradients and state, by device."""

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
from steppe.optim._state import Entry, is_like, is_scale
from steppe.optim.footprints import meta
from steppe.optim.footprints.costs import Bytes, Costs, Footprint
from steppe.optim.sam import SAM

if TYPE_CHECKING:  # builds of torch without distributed have none
    from torch.distributed.fsdp import MixedPrecisionPolicy

Shape = tuple[int, ...]
Counts = int | Iterable[Shape] | Mapping[str, Shape]


def footprint(
    model_or_counts: Module | Counts,
    optimizer: Optimizer | meta.Make,
    world_size: int,
    *,
    dtype: torch.dtype | None = None,
    mp_policy: "MixedPrecisionPolicy | None" = None,
) -> Footprint:
    """Count what a model's training holds on each of many devices, and what it sends per step.

    Nothing is allocated: models may be on the meta device.

    What is held is parameters, gradients and the optimizer's state; beside the state, SAM's copy of
    the parameters during the second pass. Activations, a model's buffers, and what is gathered
    for the moment are not counted. Under FSDP2 each tensor is cut along its first dimension
    into pieces of ⌈rows/W⌉ rows, W being ``world_size``: the first device holds the most.

    What is sent, by each device and for P bytes of parameters and G of gradients::

        FSDP2:  2·P·(W−1)/W  all-gathers, in the forward and in the backward pass
                  G·(W−1)/W  reduce-scatter
        DDP:    2·G·(W−1)/W  all-reduce, as a ring: a reduce-scatter and an all-gather

    where FSDP2 fills all pieces up to ⌈rows/W⌉ rows. SAM's second pass makes that twice as much,
    unless the first runs under DDP's ``no_sync``.
    The optimizer's own ``message``, under FSDP2 only and all-reduced as above, is

    * with critical momenta or gradients one float64, whatever the model's size: the squared norm
      of all gradients;
    * with ``scope="tensor"``, and ``DualAdam(scale_free=True)``, one more for each tensor;
    * with SAM one for its own norm.

    Other optimizers of this library send nothing. Of what those of other libraries send, nothing
    is counted.

    Parameters
    ----------
    model_or_counts
        A model, of which parameters that need no gradient have no gradient and no state; shapes of
        parameters, with or without names; or a number of parameters, taken for one vector.
    optimizer
        A class, or a function of the parameters that makes an optimizer: it is called with
        parameters on the meta device, for which ``fused=True`` cannot be had. Or an optimizer: of
        the model, or with one group, whose options are then taken for all.
        Other libraries' state is what a step on the meta device leaves in ``state``.
    world_size
        W, the number of devices; ≥ 1.
    dtype
        Number format of the parameters. None is the model's own, and torch's default for counts.
    mp_policy
        That of ``fully_shard``, for what FSDP2 sends. None sends parameters and gradients in the
        parameters' format.

    Returns
    -------
    Footprint
        Bytes by device and in all, and bytes sent, for both FSDP2 and DDP.

    Raises
    ------
    TypeError
        An argument is not of a kind named above.
    ValueError
        ``world_size`` is not an integer ≥ 1; the optimizer has groups of other parameters; or its
        step cannot be taken on the meta device.

    Notes
    -----
    ``fully_shard`` keeps what its outermost call has wrapped gathered between the passes, unless
    told ``reshard_after_forward=True``: of that, P is sent once. DDP holds the gradients a second
    time, in its buckets, unless told ``gradient_as_bucket_view=True``.

    References
    ----------
    Rajbhandari et al., *ZeRO: Memory Optimizations Toward Training Trillion Parameter Models*, SC
    2020, arXiv 1910.02054, for what is held and sent; Thakur, Rabenseifner, Gropp, *Optimization of
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
    _check(world_size, dtype, mp_policy)
    originals = list(_parameters(model_or_counts))
    params = [_on_meta(param, dtype) for param in originals]
    made = meta.made(optimizer, originals, params)
    state, message = meta.state_of(made), meta.message(made)
    passes = 2 if isinstance(made, SAM) else 1
    tensors = Counter(_Part.of(param, state.get(param, {}), passes - 1) for param in params)
    return Footprint(
        numel=sum(param.numel() for param in params),
        world_size=world_size,
        message=message,
        fsdp=_sharded(tensors, world_size, passes, message, mp_policy),
        ddp=_replicated(tensors, world_size, passes),
    )


def _check(world_size: Any, dtype: Any, policy: Any) -> None:
    if not isinstance(world_size, int) or isinstance(world_size, bool) or world_size < 1:
        raise ValueError(f"world_size={world_size!r} is not valid: expected an integer ≥ 1")
    if not isinstance(dtype, torch.dtype | None):
        raise TypeError(f"dtype={dtype!r} is not valid: expected a torch.dtype or None")
    if policy is not None and not hasattr(policy, "reduce_dtype"):
        raise TypeError(
            f"mp_policy={policy!r} is not valid: expected FSDP2's MixedPrecisionPolicy or None"
        )


class _Part(NamedTuple):
    """What of a parameter and its state is to be counted; of many it is the same."""

    shape: Shape
    dtype: torch.dtype
    is_trained: bool
    state: tuple[tuple[str, Entry], ...]
    #: How many copies of the parameter the optimizer holds for a while.
    copies: int

    @classmethod
    def of(cls, param: Parameter, state: dict[str, Entry], copies: int) -> Self:
        shape = tuple(param.shape)
        return cls(shape, param.dtype, param.requires_grad, tuple(state.items()), copies)

    def held(self, elements: int) -> tuple[int, int, int]:
        """Return the bytes of so many of its elements, of their gradients, and of their state."""
        own = elements * self.dtype.itemsize
        trained = own * self.is_trained
        state = sum(
            self._count(name, entry, elements) * entry.dtype.itemsize for name, entry in self.state
        )
        return own, trained, state + self.copies * trained

    def _count(self, name: str, entry: Entry, elements: int) -> int:
        if is_scale(name):
            return block_count(elements)
        return elements if is_like(name, entry, self.shape) else math.prod(entry.shape)


# Numbers of elements, and of devices that hold so many.
Shares = list[tuple[int, int]]


def _shares(shape: Shape, devices: int) -> Shares:
    """Cut a tensor as ``fully_shard`` does; the largest share comes first."""
    rows, row = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    piece = -(-rows // devices)
    whole, rest = divmod(rows, piece) if piece else (0, 0)
    filled = whole + (rest > 0)
    shares = [(piece * row, whole), (rest * row, filled - whole), (0, devices - filled)]
    return [(elements, count) for elements, count in shares if count]


def _sharded(
    tensors: Counter[_Part],
    devices: int,
    passes: int,
    message: int,
    policy: "MixedPrecisionPolicy | None",
) -> Costs:
    shares = {part: _shares(part.shape, devices) for part in tensors}
    gathered = reduced = 0
    for part, number in tensors.items():
        largest = number * shares[part][0][0]
        gather, reduce = _formats(part.dtype, policy)
        gathered += largest * gather.itemsize
        reduced += largest * reduce.itemsize * part.is_trained
    # FSDP2 fills up what devices hold less than the first, so that all send alike.
    others = passes * (devices - 1)
    sent = Bytes(2 * others * gathered, others * reduced, _ring(message, devices))
    return Costs(*_held(tensors, shares), sent)


def _replicated(tensors: Counter[_Part], devices: int, passes: int) -> Costs:
    shares = {part: [(math.prod(part.shape), devices)] for part in tensors}
    device, everywhere = _held(tensors, shares)
    return Costs(device, everywhere, Bytes(0, passes * _ring(device.gradients, devices), 0))


def _held(tensors: Counter[_Part], shares: dict[_Part, Shares]) -> tuple[Bytes, Bytes]:
    """Return what the fullest device holds, and what all do."""
    device, everywhere = [0, 0, 0], [0, 0, 0]
    for part, number in tensors.items():
        for i, (elements, count) in enumerate(shares[part]):
            for kind, size in enumerate(part.held(elements)):
                device[kind] += number * size * (i == 0)
                everywhere[kind] += number * size * count
    return Bytes(*device), Bytes(*everywhere)


def _ring(size: int, devices: int) -> int:
    """Return what each device sends in an all-reduce."""
    return -(-2 * size * (devices - 1) // devices)


def _formats(
    own: torch.dtype, policy: "MixedPrecisionPolicy | None"
) -> tuple[torch.dtype, torch.dtype]:
    """Return what FSDP2 gathers a parameter in, and what it reduces the gradient in."""
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
    """Return a parameter on the meta device; of a sharded one, the whole."""
    empty = torch.empty(param.shape, dtype=dtype or param.dtype, device="meta")
    return Parameter(empty, requires_grad=param.requires_grad)
