"""Products of the Hessian and of the Gauss–Newton matrix with vectors, in several ways.

:func:`~steppe.landscape.hessian` and :func:`~steppe.landscape.ggn` choose among them.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as forward
from torch import Tensor
from torch.overrides import TorchFunctionMode

from steppe.landscape.objective.batches import Batch, map_tensors, part_named
from steppe.landscape.objective.differentiate import derivatives, flat_vector, graph_nodes
from steppe.landscape.objective.objective import Objective

#: Multiplies a batch's matrix by a vector; the flag says whether its graph is needed again.
RowProduct = Callable[[Tensor, bool], Tensor]

#: Makes the graph of one batch's products, which several vectors share; and the batch's weight.
ProductGraph = Callable[[Objective, Batch], tuple[RowProduct, float]]


class DoubleBackward:
    """Differentiate gradients; the vectors of a block share the gradients' graph.

    Inside :meth:`held`, and where all data is one batch, later blocks share it too: a product then
    costs 2 gradients and not 3. The graph keeps all activations in memory, so this is done for
    small networks only, and in ``eval()`` mode only.

    Parameters
    ----------
    objective : Objective
        Model, loss and data.
    graph : callable
        :func:`of_hessian` or :func:`of_gauss_newton`.
    """

    def __init__(self, objective: Objective, graph: ProductGraph) -> None:
        self._objective, self._graph = objective, graph
        # In train() mode each pass changes running statistics, which the graph refers to.
        is_small = objective.size * objective.dtype.itemsize <= _HELD_BYTES
        self._may_hold = is_small and not objective.train
        self._is_held = False
        self._kept: tuple[RowProduct, float, int] | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the graph in a block in which neither parameters nor data change."""
        self._is_held = self._may_hold
        try:
            yield
        finally:
            self._is_held, self._kept = False, None

    def products(self, rows: Tensor) -> Tensor:
        """Return the mean over all samples of each batch's products with a block's rows."""
        objective, mean = self._objective, self._objective.new_mean(len(rows))
        if self._kept is not None:
            product, weight, samples = self._kept
            mean.add(self._products(product, rows), weight, samples)
            return mean.result(objective.dtype)[0]
        kept = None
        with (
            objective.evaluation_mode(differentiates_twice=True),
            torch.enable_grad(),
            _explain_errors(),
        ):
            for index, batch in enumerate(objective.batches()):
                product, weight = self._graph(objective, batch)
                mean.add(self._products(product, rows), weight, batch.size)
                kept = (product, weight, batch.size) if self._is_held and index == 0 else None
                # It would stay alive while the next batch's is made.
                del product
        # The graph refers to parameters and modules as they were in the evaluation mode.
        self._kept = None if objective.needs_evaluation_mode else kept
        return mean.result(objective.dtype)[0]

    def _products(self, product: RowProduct, rows: Tensor) -> Tensor:
        last = len(rows) - 1
        found = [product(row, self._is_held or i < last) for i, row in enumerate(rows)]
        return found[0].unsqueeze(0) if len(found) == 1 else torch.stack(found)


def of_hessian(objective: Objective, batch: Batch) -> tuple[RowProduct, float]:
    """Differentiate the gradient once more, along a vector."""
    loss, weight = objective.weighted_loss(batch, *objective.outputs(batch))
    _check_functions(loss)
    grads = derivatives(loss, objective.params, create_graph=True)
    _check_graph(grads)

    def product(row: Tensor, is_needed_again: bool) -> Tensor:
        slope = _Slope(grads, objective.split(row))
        return flat_vector(slope.by(objective.params, is_needed_again))

    return product, weight


def of_gauss_newton(objective: Objective, batch: Batch) -> tuple[RowProduct, float]:
    """Multiply by G = Jᵀ·∇²ℓ·J."""
    found, targets = objective.outputs(batch)
    outputs = tensor_of(found, "ggn")
    leaf = outputs.detach().requires_grad_()
    # Not the leaf itself, into which no loss could write.
    loss, weight = objective.weighted_loss(batch, leaf.clone(), targets)
    _check_reads_outputs_only(objective, loss)
    slopes = derivatives(loss, [leaf], create_graph=True)
    _check_graph(slopes)
    if not outputs.requires_grad:
        # They do not depend on the parameters.
        return lambda row, is_needed_again: torch.zeros_like(row), weight
    jacobian = Jacobian(outputs, objective.params)

    def product(row: Tensor, is_needed_again: bool) -> Tensor:
        pushed = jacobian.push(objective.split(row), is_needed_again)
        (curved,) = _Slope(slopes, [pushed]).by([leaf], is_needed_again)
        return jacobian.pull(curved, is_needed_again)

    return product, weight


class Jacobian:
    """The derivatives J of outputs by parameters, known by products.

    Jᵀu is linear in u, so its derivative by u along v is Jv.
    """

    def __init__(self, outputs: Tensor, params: Sequence[Tensor]) -> None:
        _check_functions(outputs)
        self._outputs, self._params = outputs, params
        self._direction = torch.zeros_like(outputs).requires_grad_()
        self._pulled = torch.autograd.grad(
            outputs, params, self._direction, create_graph=True, allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip
        _check_graph(self._pulled)

    def push(self, vectors: Sequence[Tensor], is_needed_again: bool) -> Tensor:
        """Return Jv, of the outputs' shape, for a vector in the parameters' shapes."""
        return _Slope(self._pulled, vectors).by([self._direction], is_needed_again)[0]

    def pull(self, vector: Tensor, is_needed_again: bool) -> Tensor:
        """Return Jᵀu in one dimension, for u of the outputs' shape."""
        return flat_vector(_Slope([self._outputs], [vector]).by(self._params, is_needed_again))


def _check_functions(value: Tensor) -> None:
    """Refuse functions of the user's whose backward pass has no derivative, as in NumPy.

    A backward pass is linear in the gradient that it is given, so it depends on that.
    """
    for node in graph_nodes([value]):
        if not isinstance(node, torch.autograd.function.BackwardCFunction):
            continue
        given = [
            torch.ones(each.shape, dtype=each.dtype, device=each.device, requires_grad=True)
            for each in node._input_metadata
            if each.dtype.is_floating_point
        ]
        try:
            with torch.enable_grad():
                found = node.apply(*given)
        except Exception:
            # Of what is not called in the usual way nothing is known.
            continue
        for each in found if isinstance(found, tuple) else (found,):
            if isinstance(each, Tensor) and not each.requires_grad and bool(each.any()):
                raise RuntimeError(_NO_DERIVATIVE)


class _Slope(NamedTuple):
    """The inner product of some tensors with vectors, to be differentiated."""

    tensors: Sequence[Tensor]
    vectors: Sequence[Tensor]

    def by(self, variables: Sequence[Tensor], is_needed_again: bool) -> tuple[Tensor, ...]:
        """Return its derivatives, zeros by what it does not depend on."""
        # What is linear has a constant derivative, which has no graph.
        curved = [i for i, each in enumerate(self.tensors) if each.requires_grad]
        if not curved:
            return tuple(map(torch.zeros_like, variables))
        found = torch.autograd.grad(
            [self.tensors[i] for i in curved],
            variables,
            [self.vectors[i] for i in curved],
            retain_graph=is_needed_again,
            allow_unused=True,
            materialize_grads=True,
        )
        return tuple(each if each.layout == torch.strided else each.to_dense() for each in found)


# Size of a vector up to which the graph is kept between blocks.
_HELD_BYTES = 1 << 24


def forward_over_reverse(objective: Objective, rows: Tensor) -> Tensor:
    """Differentiate the gradient along each row, by a pass of dual numbers for each."""
    mean = objective.new_mean(len(rows))
    with (
        objective.evaluation_mode(differentiates_twice=True),
        torch.enable_grad(),
        _explain_errors(),
    ):
        for batch in objective.batches():
            found = [_along(objective, batch, row) for row in rows]
            mean.add(torch.stack([product for product, _ in found]), found[0][1], batch.size)
    return mean.result(objective.dtype)[0]


def _along(objective: Objective, batch: Batch, row: Tensor) -> tuple[Tensor, float]:
    try:
        return _gradient_along(objective, batch, row, lambda targets: targets)
    except RuntimeError as error:
        if _ZERO_TENSORS not in str(error):
            raise
        # The backward of F.mse_loss writes into its target's tangent (found in torch 2.13).
        return _gradient_along(objective, batch, row, _with_tangents)


def _gradient_along(
    objective: Objective, batch: Batch, row: Tensor, prepare: Callable[[Any], Any]
) -> tuple[Tensor, float]:
    with forward.dual_level():
        duals = _duals(objective, row)
        with _NoTangentsWithoutGradients():
            outputs, targets = objective.outputs(batch, duals)
            loss, weight = objective.weighted_loss(batch, outputs, prepare(targets))
        if not weight:
            # An empty batch, or one whose targets are all ignored.
            return torch.zeros_like(row), weight
        _check_reads_outputs_only(objective, loss)
        grads = derivatives(loss, duals)
        tangents = [_unpacked(grad)[1] for grad in grads]
        return flat_vector([_or_zeros(*x) for x in zip(tangents, grads, strict=True)]), weight


class _NoTangentsWithoutGradients(TorchFunctionMode):
    """Lets ``no_grad`` stop tangents as it stops gradients: by itself torch carries them on."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        with forward._set_fwd_grad_enabled(False):
            return func(*args, **(kwargs or {}))


def _with_tangents(targets: Any) -> Any:
    """Return targets as dual numbers whose tangents are zeros that can be written to."""

    def dual(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        zeros = torch.zeros_like(tensor)
        return forward.make_dual(tensor, zeros)  # type: ignore[no-any-return, no-untyped-call]

    return map_tensors(targets, dual)


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


def _duals(objective: Objective, row: Tensor) -> list[Tensor]:
    """Return the parameters as dual numbers whose tangents are a vector's parts."""
    _load_forward_mode()
    return [
        forward.make_dual(param.detach().requires_grad_(), part)  # type: ignore[no-untyped-call]
        for param, part in zip(objective.params, objective.split(row), strict=True)
    ]


def _unpacked(dual: Tensor) -> tuple[Tensor, Tensor | None]:
    primal, tangent = forward.unpack_dual(dual)  # type: ignore[no-untyped-call]
    return primal, tangent


def _or_zeros(tangent: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if tangent is None else tangent.detach()


def tensor_of(outputs: Any, who: str) -> Tensor:
    """Return the tensor that a model returns, or the one named ``logits``.

    Raises
    ------
    ValueError
        There is none; the message names who needs it.
    """
    logits = part_named("logits", outputs)
    found = outputs if logits is None else logits
    if not isinstance(found, Tensor):
        raise ValueError(
            f"the model returns {type(outputs).__name__}: {who} needs one tensor, or one named "
            "logits"
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
        if _WRITTEN in str(error):
            raise RuntimeError(
                f"model or loss write into a tensor that their derivatives need: {error}; where it "
                "is a loss that keeps a mean of its own, weight= leaves out the passes that verify "
                "what it is divided by"
            ) from error
        if not any(phrase in str(error) for phrase in _UNDIFFERENTIABLE):
            raise
        raise RuntimeError(
            f"an operation of the model cannot be differentiated a second time: {error}; "
            "hessian(..., product='finite-differences') needs first derivatives only"
        ) from error


_NO_DERIVATIVE = (
    "a backward pass of the model has no derivative of its own (differentiate twice), as one that "
    "is computed in NumPy"
)

_ZERO_TENSORS = "ZeroTensors are immutable"

_WRITTEN = "modified by an inplace operation"

# Phrases of torch's errors about missing second derivatives.
_UNDIFFERENTIABLE = (
    "is not implemented",
    "Trying to use forward AD with",
    "You must implement the jvp function",
    "once_differentiable",
    "differentiate twice",
    "double backward",
)
