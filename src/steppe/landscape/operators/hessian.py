"""The Hessian and the Gauss–Newton matrix of a mean loss, by their products with vectors."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, Literal

import torch
import torch.autograd.forward_ad as forward
from torch import Tensor, nn

from steppe.landscape._objective import (
    Batch,
    Batches,
    LossFunction,
    Mean,
    Objective,
    derivatives,
    flat,
)
from steppe.landscape.operators.operator import Operator

Product = Literal["double-backward", "forward-over-reverse", "finite-differences"]

_PRODUCTS = ("double-backward", "forward-over-reverse", "finite-differences")


def hessian(
    model: nn.Module,
    loss_fn: LossFunction | None,
    data: Batches,
    *,
    params: Iterable[Tensor] | None = None,
    train: bool = False,
    product: Product = "double-backward",
) -> Operator:
    r"""Return the Hessian of the mean loss over all samples, as an operator.

    .. math:: H = \frac{1}{N} \sum_i ∇^2 ℓ(w; x_i, y_i)

    Batches count by their size, so a ragged last batch is right, and the order of samples does not
    matter. Batches are added up in float64. The model is left as found: mode, parameters,
    gradients, buffers and random state. Attention is computed by the one kernel that can be
    differentiated twice. Under ``DistributedDataParallel`` each process has its own samples, and
    the mean is over those of all; every process must ask for the same products.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, or ``model(**batch)`` where batches are mappings.
    loss_fn : callable or None
        ``loss_fn(outputs, targets)``, for mappings ``loss_fn(outputs, batch)``: a scalar, the mean
        over the batch's samples. None takes the loss that the model computes (``outputs.loss``).
    data : iterable
        ``(inputs, targets)`` or mappings; gone through once for each product. Tensors are moved to
        the model's device.
    params : iterable of Tensor, optional
        The parameters that vary, in the order of the vectors' elements. Default: those that require
        a gradient.
    train : bool, default False
        Evaluate in ``train()`` mode (batch statistics, dropout with the same masks each time; the
        running statistics stay as they are) and not in ``eval()``.
    product : str
        "double-backward" costs about 3 gradients. "forward-over-reverse" costs a little more and
        needs far less memory on transformers. "finite-differences" takes two gradients, for models
        that cannot be differentiated twice; its error is about 1e-3 in float32, 1e-7 in float64.

    Returns
    -------
    Operator
        ``matvec``, ``matmat`` (one forward pass and gradient for the whole block), ``products``.

    Raises
    ------
    ValueError
        ``product`` is unknown, or "finite-differences" and a parameter narrower than float32; a
        parameter requires no gradient. When a product is taken: the data is empty, the loss is not
        a scalar, not finite, or does not depend on the parameters.
    RuntimeError
        An operation of the model cannot be differentiated twice; it names the remedy.

    References
    ----------
    Pearlmutter, *Fast exact multiplication by the Hessian*, Neural Computation 6 (1994).

    Examples
    --------
    The Hessian of ½(w·x − y)², averaged, is the mean of x xᵀ:

    >>> model = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    >>> half_square = lambda outputs, targets: (outputs - targets).square().mean() / 2
    >>> H = hessian(model, half_square, [(x, torch.zeros(2, 1))])
    >>> H.matmat(torch.eye(2))
    tensor([[1., 1.],
            [1., 2.]])
    """
    if product not in _PRODUCTS:
        raise ValueError(f"product={product!r} is not one of {', '.join(_PRODUCTS)}")
    objective = Objective(model, loss_fn, data, params=params, train=train)
    if product == "finite-differences":
        objective.check_width("product='finite-differences'")
        return _operator(objective, lambda rows: _by_differences(objective, rows))
    if product == "double-backward":
        twice = _DoubleBackward(objective)
        return _operator(objective, twice.products, twice.held)
    return _operator(
        objective, lambda rows: _mean_over_batches(objective, _forward_over_reverse, rows)
    )


def ggn(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batches,
    *,
    params: Iterable[Tensor] | None = None,
    train: bool = False,
) -> Operator:
    r"""Return the generalised Gauss–Newton matrix of the mean loss, as an operator.

    .. math:: G = \frac{1}{N} \sum_i J_i^⊤ \, ∇^2_{f} ℓ(f(x_i), y_i) \, J_i

    with J the Jacobian of the model's outputs f: the Hessian without the curvature of the model
    itself. It has no negative eigenvalues where the loss is convex in the outputs.

    Parameters
    ----------
    model, loss_fn, data, params, train
        As in :func:`hessian`, but the loss must be a function of the outputs. These must be one
        tensor, or have ``logits``, which ``loss_fn`` is called with then.

    Returns
    -------
    Operator
        Its products cost about 2 gradients.

    Raises
    ------
    ValueError
        As in :func:`hessian`; or ``loss_fn`` is None, or the outputs are not a tensor.

    References
    ----------
    Schraudolph, *Fast curvature matrix-vector products*, Neural Computation 14 (2002).

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    >>> half_square = lambda outputs, targets: (outputs - targets).square().mean() / 2
    >>> ggn(model, half_square, [(x, torch.zeros(2, 1))]).matvec(torch.tensor([1.0, 0.0]))
    tensor([1., 1.])
    """
    if loss_fn is None:
        raise ValueError("loss_fn=None: ggn needs the loss as a function of the model's outputs")
    objective = Objective(model, loss_fn, data, params=params, train=train)
    return _operator(objective, lambda rows: _mean_over_batches(objective, _gauss_newton, rows))


def _operator(
    objective: Objective,
    product: Callable[[Tensor], Tensor],
    held: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Operator:
    return Operator(
        objective.size,
        product,
        dtype=objective.dtype,
        device=objective.device,
        params=objective.params,
        held=held,
    )


OfBatch = Callable[[Objective, Batch, Tensor], list[Tensor]]


def _mean_over_batches(objective: Objective, of_batch: OfBatch, rows: Tensor) -> Tensor:
    mean = Mean(objective, len(rows))
    with objective.at_work(), torch.enable_grad(), _explained():
        for batch in objective.batches():
            # Under no name here: it would stand beside the next batch's.
            mean.add(_as_rows(of_batch(objective, batch, rows)), batch.size)
    return mean.rows()


def _as_rows(products: list[Tensor]) -> Tensor:
    return products[0].unsqueeze(0) if len(products) == 1 else torch.stack(products)


class _DoubleBackward:
    """Differentiate the gradient, one graph of which serves all vectors of a block.

    While the parameters are held, and all data is one batch, it serves all blocks: a third of each
    product is saved. That keeps the activations in memory, and so is done for small networks only,
    in ``eval()`` mode.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        # In train() mode each pass changes running statistics, which are in the graph.
        is_small = objective.size * objective.dtype.itemsize <= _HELD_BYTES
        self._may_hold = is_small and not objective.train
        self._is_held = False
        self._kept: tuple[tuple[Tensor, ...], int] | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Promise that neither parameters nor data change meanwhile."""
        self._is_held = self._may_hold
        try:
            yield
        finally:
            self._is_held, self._kept = False, None

    def products(self, rows: Tensor) -> Tensor:
        """Return the products with a block's rows."""
        objective, mean = self._objective, Mean(self._objective, len(rows))
        if self._kept is not None:
            grads, size = self._kept
            mean.add(_as_rows(self._differentiated(grads, rows)), size)
            return mean.rows()
        with objective.at_work(), torch.enable_grad(), _explained():
            kept = None
            for number, batch in enumerate(objective.batches()):
                loss = objective.loss_of(batch, objective.outputs(batch))
                grads = derivatives(loss, objective.params, create_graph=True)
                _check_graph(grads)
                mean.add(_as_rows(self._differentiated(grads, rows)), batch.size)
                kept = (grads, batch.size) if self._is_held and number == 0 else None
        self._kept = kept
        return mean.rows()

    def _differentiated(self, grads: tuple[Tensor, ...], rows: Tensor) -> list[Tensor]:
        # Where the loss is linear in a parameter its gradient is a constant.
        curved = [i for i, grad in enumerate(grads) if grad.requires_grad]
        if not curved:
            return [torch.zeros_like(row) for row in rows]
        products = []
        for number, row in enumerate(rows, start=1):
            vector = self._objective.split(row)
            parts = torch.autograd.grad(
                [grads[i] for i in curved],
                self._objective.params,
                [vector[i] for i in curved],
                retain_graph=self._is_held or number < len(rows),
                allow_unused=True,
                materialize_grads=True,
            )
            products.append(flat(parts))
        return products


# Of a vector.
_HELD_BYTES = 1 << 24


def _forward_over_reverse(objective: Objective, batch: Batch, rows: Tensor) -> list[Tensor]:
    """Differentiate the gradient along each row."""
    products = []
    for row in rows:
        with forward.dual_level():
            duals = _duals(objective, row)
            loss = objective.loss_of(batch, objective.outputs(batch, duals))
            grads = derivatives(loss, list(duals.values()))
            tangents = [_unpacked(grad)[1] for grad in grads]
            products.append(flat([_or_zeros(*x) for x in zip(tangents, grads, strict=True)]))
    return products


def _gauss_newton(objective: Objective, batch: Batch, rows: Tensor) -> list[Tensor]:
    """One pass of dual numbers gives Jv, and the graph that Jᵀ needs."""
    products = []
    for row in rows:
        with forward.dual_level():
            duals = _duals(objective, row)
            outputs, tangent = _unpacked(_tensor_of(objective.outputs(batch, duals)))
            ends = outputs.detach().requires_grad_()
            slopes = derivatives(objective.loss_of(batch, ends), [ends], create_graph=True)
            if tangent is None or not slopes[0].requires_grad:
                products.append(torch.zeros_like(row))
                continue
            _check_graph(slopes)
            curved = torch.autograd.grad(slopes, [ends], [tangent.detach()], materialize_grads=True)
            parts = torch.autograd.grad(
                outputs, list(duals.values()), curved, allow_unused=True, materialize_grads=True
            )
            products.append(flat(parts).detach())
    return products


def _by_differences(objective: Objective, rows: Tensor) -> Tensor:
    """(∇L(w + hv) − ∇L(w − hv))/2h, with the h that weighs both errors equally."""
    with objective.at_work(moves=True):
        start = flat([param.detach() for param in objective.params]).to(objective.dtype, copy=True)
        reach = torch.finfo(objective.dtype).eps ** (1 / 3) * (1.0 + start.norm().item())
        products = []
        for row in rows:
            h = reach / max(row.norm().item(), torch.finfo(objective.dtype).tiny)
            slopes = []
            for sign in (1.0, -1.0):
                objective.place(start + sign * h * row)
                slopes.append(objective.gradient()[0])
            products.append((slopes[0] - slopes[1]).div_(2 * h).to(objective.dtype))
    return torch.stack(products)


def _check_graph(grads: Iterable[Tensor]) -> None:
    """Look for derivatives marked as final, which autograd takes for constants without a word."""
    waiting: list[Any] = [grad.grad_fn for grad in grads]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            raise RuntimeError("a torch.autograd.Function is marked once_differentiable")
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]


@cache
def _load_forward_mode() -> None:
    """Let torch load, inside a level, what dual numbers need: its own deprecations warn of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        forward.make_dual(torch.zeros(()), torch.zeros(()))  # type: ignore[no-untyped-call]


def _duals(objective: Objective, row: Tensor) -> dict[str, Tensor]:
    """Return the parameters as dual numbers whose tangents are a vector's parts."""
    _load_forward_mode()
    duals = {}
    for name, param, part in zip(
        objective.names, objective.params, objective.split(row), strict=True
    ):
        primal = param.detach().requires_grad_()
        duals[name] = forward.make_dual(primal, part)  # type: ignore[no-untyped-call]
    return duals


def _unpacked(dual: Tensor) -> tuple[Tensor, Tensor | None]:
    primal, tangent = forward.unpack_dual(dual)  # type: ignore[no-untyped-call]
    return primal, tangent


def _or_zeros(tangent: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if tangent is None else tangent.detach()


def _tensor_of(outputs: Any) -> Tensor:
    found = getattr(outputs, "logits", outputs)
    if not isinstance(found, Tensor):
        raise ValueError(
            f"the model returns {type(outputs).__name__}: ggn needs one tensor, or one in .logits"
        )
    return found


@contextmanager
def _explained() -> Iterator[None]:
    """Say what to do about an operation that cannot be differentiated twice."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if not any(sign in str(error) for sign in _UNDIFFERENTIABLE):
            raise
        raise RuntimeError(
            f"an operation of the model cannot be differentiated a second time: {error}; "
            "hessian(..., product='finite-differences') needs first derivatives only"
        ) from error


_UNDIFFERENTIABLE = (
    "is not implemented",
    "Trying to use forward AD with",
    "You must implement the jvp function",
    "once_differentiable",
    "differentiate twice",
    "double backward",
)
