"""Products of the Hessian and of the Gauss–Newton matrix with vectors, in several ways.

:func:`~steppe.landscape.hessian` and :func:`~steppe.landscape.ggn` choose among them.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.autograd.forward_ad as forward
from torch import Tensor

from steppe.landscape.objective.batches import Batch, map_tensors
from steppe.landscape.objective.differentiate import derivatives, flat_vector, graph_nodes
from steppe.landscape.objective.objective import Objective

#: Products of one batch's matrix with the rows of a block, and the batch's weight in the mean.
_BatchProducts = Callable[[Objective, Batch, Tensor], tuple[list[Tensor], float]]


def mean_over_batches(objective: Objective, batch_products: _BatchProducts, rows: Tensor) -> Tensor:
    """Return the mean over all samples of each batch's products, shape (count, size)."""
    mean = objective.new_mean(len(rows))
    with (
        objective.evaluation_mode(differentiates_twice=True),
        torch.enable_grad(),
        _explain_errors(),
    ):
        for batch in objective.batches():
            products, weight = batch_products(objective, batch, rows)
            mean.add(_as_rows(products), weight, batch.size)
            # They would stay alive while the next batch's are computed.
            del products
    return mean.result(objective.dtype)[0]


def _as_rows(products: list[Tensor]) -> Tensor:
    return products[0].unsqueeze(0) if len(products) == 1 else torch.stack(products)


class DoubleBackward:
    """Differentiate the gradient; the vectors of a block share the gradient's graph.

    Inside :meth:`held`, and where all data is one batch, later blocks share it too: a product then
    costs 2 gradients and not 3. The graph keeps all activations in memory, so this is done for
    small networks only, and in ``eval()`` mode only.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        # In train() mode each pass changes running statistics, which the graph refers to.
        is_small = objective.size * objective.dtype.itemsize <= _HELD_BYTES
        self._may_hold = is_small and not objective.train
        self._is_held = False
        self._kept: tuple[tuple[Tensor, ...], float, int] | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the graph in a block in which neither parameters nor data change."""
        self._is_held = self._may_hold
        try:
            yield
        finally:
            self._is_held, self._kept = False, None

    def products(self, rows: Tensor) -> Tensor:
        """Return the products with a block's rows."""
        objective, mean = self._objective, self._objective.new_mean(len(rows))
        if self._kept is not None:
            grads, weight, samples = self._kept
            mean.add(_as_rows(self._differentiate(grads, rows)), weight, samples)
            return mean.result(objective.dtype)[0]
        kept = None
        with (
            objective.evaluation_mode(differentiates_twice=True),
            torch.enable_grad(),
            _explain_errors(),
        ):
            for index, batch in enumerate(objective.batches()):
                loss, weight = objective.weighted_loss(batch, *objective.outputs(batch))
                grads = derivatives(loss, objective.params, create_graph=True)
                _check_graph(grads)
                mean.add(_as_rows(self._differentiate(grads, rows)), weight, batch.size)
                kept = (grads, weight, batch.size) if self._is_held and index == 0 else None
        # The graph refers to parameters and modules as they were in the evaluation mode.
        self._kept = None if objective.needs_evaluation_mode else kept
        return mean.result(objective.dtype)[0]

    def _differentiate(self, grads: tuple[Tensor, ...], rows: Tensor) -> list[Tensor]:
        # Where the loss is linear in a parameter, its gradient is a constant without a graph.
        curved = [i for i, grad in enumerate(grads) if grad.requires_grad]
        if not curved:
            return [torch.zeros_like(row) for row in rows]
        products = []
        for count, row in enumerate(rows, start=1):
            vector = self._objective.split(row)
            parts = torch.autograd.grad(
                [grads[i] for i in curved],
                self._objective.params,
                [vector[i] for i in curved],
                retain_graph=self._is_held or count < len(rows),
                allow_unused=True,
                materialize_grads=True,
            )
            products.append(flat_vector(parts))
        return products


# Size of a vector up to which the graph is kept between blocks.
_HELD_BYTES = 1 << 24


def forward_over_reverse(
    objective: Objective, batch: Batch, rows: Tensor
) -> tuple[list[Tensor], float]:
    """Differentiate the gradient along each row."""
    products, weight = [], 0.0
    for row in rows:
        try:
            product, weight = _gradient_along(objective, batch, row, lambda targets: targets)
        except RuntimeError as error:
            if _ZERO_TENSORS not in str(error):
                raise
            # The backward of F.mse_loss writes into its target's tangent (found in torch 2.13).
            product, weight = _gradient_along(objective, batch, row, _with_tangents)
        products.append(product)
    return products, weight


def _gradient_along(
    objective: Objective, batch: Batch, row: Tensor, prepare: Callable[[Any], Any]
) -> tuple[Tensor, float]:
    with forward.dual_level():
        duals = _duals(objective, row)
        outputs, targets = objective.outputs(batch, duals)
        loss, weight = objective.weighted_loss(batch, outputs, prepare(targets))
        if not weight:
            # An empty batch, or one whose targets are all ignored.
            return torch.zeros_like(row), weight
        _check_reads_outputs_only(objective, loss)
        grads = derivatives(loss, list(duals.values()))
        tangents = [_unpacked(grad)[1] for grad in grads]
        return flat_vector([_or_zeros(*x) for x in zip(tangents, grads, strict=True)]), weight


def _with_tangents(targets: Any) -> Any:
    """Return targets as dual numbers whose tangents are zeros that can be written to."""

    def dual(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        zeros = torch.zeros_like(tensor)
        return forward.make_dual(tensor, zeros)  # type: ignore[no-any-return, no-untyped-call]

    return map_tensors(targets, dual)


def gauss_newton(objective: Objective, batch: Batch, rows: Tensor) -> tuple[list[Tensor], float]:
    """Multiply by G = Jᵀ·∇²ℓ·J: one pass of dual numbers gives Jv, and the graph that Jᵀ needs."""
    products, weight = [], 0.0
    for row in rows:
        with forward.dual_level():
            duals = _duals(objective, row)
            found, targets = objective.outputs(batch, duals)
            outputs, tangent = _unpacked(_tensor_of(found))
            leaf = outputs.detach().requires_grad_()
            loss, weight = objective.weighted_loss(batch, leaf, targets)
            _check_reads_outputs_only(objective, loss)
            slopes = derivatives(loss, [leaf], create_graph=True)
            # The outputs do not depend on the parameters, or the loss is linear in the outputs.
            if tangent is None or not slopes[0].requires_grad:
                products.append(torch.zeros_like(row))
                continue
            _check_graph(slopes)
            curved = torch.autograd.grad(slopes, [leaf], [tangent.detach()], materialize_grads=True)
            parts = torch.autograd.grad(
                outputs, list(duals.values()), curved, allow_unused=True, materialize_grads=True
            )
            products.append(flat_vector(parts).detach())
    return products, weight


def finite_differences(objective: Objective, rows: Tensor) -> Tensor:
    """Return (∇L(w + hv) − ∇L(w − hv))/2h.

    The step h ∝ ε^⅓ balances the truncation error, which grows as h², and the rounding error, which
    grows as ε/h (Nocedal and Wright, *Numerical Optimization*, section 8.1).
    """
    with objective.evaluation_mode(moves_params=True, differentiates_twice=True):
        start = flat_vector([param.detach() for param in objective.params]).to(
            objective.dtype, copy=True
        )
        reach = torch.finfo(objective.dtype).eps ** (1 / 3) * (1.0 + start.norm().item())
        products = []
        for row in rows:
            h = reach / max(row.norm().item(), torch.finfo(objective.dtype).tiny)
            slopes = []
            for sign in (1.0, -1.0):
                objective.set_parameters(start + sign * h * row)
                slopes.append(objective.gradient()[0])
            products.append((slopes[0] - slopes[1]).div_(2 * h).to(objective.dtype))
    return torch.stack(products)


def _check_graph(grads: Sequence[Tensor]) -> None:
    """Refuse functions marked ``once_differentiable``: autograd would take them for constants.

    Their backward puts a node named Error into the graph, which raises only if it is reached.
    """
    for node in graph_nodes(grads):
        if node.name() == "torch::autograd::Error":
            raise RuntimeError("a torch.autograd.Function is marked once_differentiable")


def _check_reads_outputs_only(objective: Objective, loss: Tensor) -> None:
    """Refuse a loss that reads parameters itself: the model only is run with others in their place.

    What such a loss adds would be taken for a constant.
    """
    own = {id(param) for param in objective.params}
    if any(id(getattr(node, "variable", None)) in own for node in graph_nodes([loss])):
        raise ValueError(
            "the loss reads the model's parameters beside its outputs, as a penalty on weights "
            "does, and this product would leave that out: take hessian(..., "
            "product='double-backward'), or a loss of the outputs alone"
        )


@cache
def _load_forward_mode() -> None:
    """Load what dual numbers need, once: torch raises deprecation warnings of its own meanwhile."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        zero = torch.zeros((), device="cpu")
        forward.make_dual(zero, zero.clone())  # type: ignore[no-untyped-call]


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
def _explain_errors() -> Iterator[None]:
    """Add the remedy to torch's error about an operation that cannot be differentiated twice."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if _ZERO_TENSORS in str(error):
            raise RuntimeError(
                f"torch cannot differentiate an operation of the loss in forward mode: {error}; "
                "take hessian(..., product='double-backward')"
            ) from error
        if not any(phrase in str(error) for phrase in _UNDIFFERENTIABLE):
            raise
        raise RuntimeError(
            f"an operation of the model cannot be differentiated a second time: {error}; "
            "hessian(..., product='finite-differences') needs first derivatives only"
        ) from error


_ZERO_TENSORS = "ZeroTensors are immutable"

# Phrases of torch's errors about missing second derivatives.
_UNDIFFERENTIABLE = (
    "is not implemented",
    "Trying to use forward AD with",
    "You must implement the jvp function",
    "once_differentiable",
    "differentiate twice",
    "double backward",
)
