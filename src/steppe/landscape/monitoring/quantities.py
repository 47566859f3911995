"""What a run is watched by: each quantity is measured on its own, and one that fails is NaN."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from steppe._shared.messages import first_line
from steppe._shared.progress import silent
from steppe.landscape.monitoring.update_size import relative_update
from steppe.landscape.objective.batches import Batch
from steppe.landscape.objective.loss_weight import LossFunction
from steppe.landscape.objective.objective import Objective
from steppe.landscape.operators.hessian import Product, hessian
from steppe.landscape.operators.operator import Operator
from steppe.landscape.operators.preconditioned import preconditioned, wrapped_optimizer
from steppe.landscape.operators.stability_of_sam import is_constant, threshold_of_sam
from steppe.landscape.spectra.eigenvalues import top_eigenvalues
from steppe.landscape.surfaces.sharpness import sharpness

Values = dict[str, float]

#: The quantities in the order in which they are measured, with the names of their values; those of
#: the optimizer's diagnostics are its own.
QUANTITIES: dict[str, tuple[str, ...]] = {
    "update": ("update_ratio",),
    "optimizer": (),
    "loss": ("loss", "gradient_norm"),
    "sharpness": ("sharpness",),
    "lambda_max": ("lambda_max",),
    "stability": ("lambda_max_ph", "threshold", "stability"),
}

# Measured every 40 steps of training, λ_max took at most 34 products.
_MOST_PRODUCTS = 100

# Two searches on a network that has been trained for a while.
_USUAL_PRODUCTS = 20


@dataclass(frozen=True)
class WatchedRun:
    """A run's model, loss and optimizer, and how they are measured; see :class:`Monitor`."""

    model: nn.Module
    loss_fn: LossFunction | None
    optimizer: Any
    params: Sequence[Tensor]
    rho: float
    tol: float
    seed: int
    options: dict[str, Any]
    product: Product

    def hessian(self, data: Any) -> Operator:
        """Return the Hessian over some data."""
        return hessian(
            self.model,
            self.loss_fn,
            data,
            params=self.params,
            product=self.product,
            **self.options,
        )

    def objective(self, data: Any) -> Objective:
        """Return the mean loss over some data."""
        return Objective(self.model, self.loss_fn, data, params=self.params, **self.options)

    def rehearse(
        self, batches: list[Batch], quantities: Sequence[str], clock: Callable[[], float]
    ) -> float:
        """Compute what measurements will, and return the seconds that one is expected to take.

        What cannot be measured raises here, before training. Torch loads some of its parts when
        they are first used, so the second time counts.
        """
        is_curved = not {"lambda_max", "stability"}.isdisjoint(quantities)
        for data in (batches[:1], batches):
            self.wait_for_device()
            began = clock()
            with self.left_alone():
                if is_curved:
                    H = self.hessian(data)
                    H.matvec(torch.ones(H.size, dtype=H.dtype, device=H.device))
                else:
                    objective = self.objective(data)
                    with objective.evaluation_mode():
                        objective.gradient()
        return (_USUAL_PRODUCTS if is_curved else 1) * (clock() - began)

    def wait_for_device(self) -> None:
        """Wait for what training has queued on a GPU, before time is measured or memory read."""
        if self.params[0].device.type == "cuda":
            torch.cuda.synchronize(self.params[0].device)

    @contextmanager
    def left_alone(self) -> Iterator[None]:
        """Leave no trace in the tensors' version counters: what is moved inside is put back."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        with ExitStack() as stack:
            for tensor in tensors:
                if not tensor.is_inference():
                    stack.enter_context(_unsafe_preserve_version_counter(tensor))
            yield


@dataclass
class Measuring:
    """One measurement: the values so far, and why others could not be measured.

    Parameters
    ----------
    run : WatchedRun
        What is measured.
    batches : list of Batch
        The samples.
    step : int
        The optimizer's steps so far; random vectors depend on it.
    before : list of Tensor or None
        The weights before the last step, from ``sampled_weights``.
    vectors : dict
        The last eigenvectors by quantity, where the searches begin; they are replaced.
    verify : bool
        Whether searches verify that no larger eigenvalue is missed, which takes them twice as long.
    """

    run: WatchedRun
    batches: list[Batch]
    step: int
    before: list[Tensor] | None
    vectors: dict[str, Tensor]
    verify: bool
    values: Values = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    products: int = 0

    def measure(self, quantities: Sequence[str]) -> None:
        """Measure quantities one by one; what fails is NaN, with its reason."""
        with silent(), self.run.left_alone():
            for name in quantities:
                try:
                    self.values |= _MEASURED_BY[name](self)
                except Exception as error:
                    # Whatever it is, training goes on.
                    self.values |= dict.fromkeys(QUANTITIES[name], float("nan"))
                    self.reasons[name] = first_line(error)

    def update(self) -> Values:
        """Return the size of the last step against that of the weights."""
        if self.before is None:
            # Of the first step of all, or after measure(): nothing has failed.
            return {"update_ratio": float("nan")}
        return {"update_ratio": relative_update(self.run.params, self.before)}

    def diagnostics(self) -> Values:
        """Return what the optimizer says of itself, or one that it wraps; nothing if none does."""
        optimizer = self.run.optimizer
        while optimizer is not None:
            if callable(diagnose := getattr(optimizer, "diagnostics", None)):
                found = diagnose().items()
                return {f"optimizer/{name}": float(value) for name, value in found}
            optimizer = wrapped_optimizer(optimizer)
        return {}

    def loss(self) -> Values:
        """Return the mean loss, and the L2 norm of its gradient."""
        objective = self.run.objective(self.batches)
        with objective.evaluation_mode():
            gradient, loss, *_ = objective.gradient()
        return {"loss": loss, "gradient_norm": gradient.norm().item()}

    def sharpness(self) -> Values:
        """Return SAM's sharpness: how far the loss rises by a step of length ρ up the gradient."""
        run = self.run
        found = sharpness(
            run.model, run.loss_fn, self.batches, rho=run.rho, params=run.params, **run.options
        )
        return {"sharpness": found.value}

    def lambda_max(self) -> Values:
        """Return the largest eigenvalue of the Hessian, with sign."""
        return {"lambda_max": self._largest("lambda_max", self.run.hessian(self.batches))}

    def stability(self) -> Values:
        """Return λ_max(PH), its threshold, their ratio, and SAM's threshold for λ_max."""
        PH = preconditioned(self.run.hessian(self.batches), self.run.optimizer)
        largest = self.values.get("lambda_max", float("nan"))
        if is_constant(PH.diagonal) and largest == largest:
            value = largest * float(PH.diagonal[0])
        else:
            value = self._largest("stability", PH)
        found = {
            "lambda_max_ph": value,
            "threshold": PH.threshold,
            "stability": value / PH.threshold,
        }
        norm = self.values.get("gradient_norm", float("nan"))
        if norm == norm:
            own = threshold_of_sam(self.run.optimizer, PH, norm)
            found |= {} if own is None else {"sam_threshold": own}
        return found

    def _largest(self, name: str, operator: Operator) -> float:
        search = partial(top_eigenvalues, operator, 1, which="LA", tol=self.run.tol)
        start = None if self.verify else self.vectors.get(name)
        found = search(
            seed=self.run.seed + self.step,
            max_products=_MOST_PRODUCTS,
            start=start,
            verify=start is None,
        )
        self.products += found.products
        if found.reason == "interrupted":
            # The search ends at Ctrl-C, and training is to end too.
            raise KeyboardInterrupt
        self.vectors[name] = found.vectors[:, 0].clone()
        if not found.is_done:
            raise ValueError(found.reason)
        return float(found.values[0])


_MEASURED_BY: dict[str, Callable[[Measuring], Values]] = {
    "update": Measuring.update,
    "optimizer": Measuring.diagnostics,
    "loss": Measuring.loss,
    "sharpness": Measuring.sharpness,
    "lambda_max": Measuring.lambda_max,
    "stability": Measuring.stability,
}
