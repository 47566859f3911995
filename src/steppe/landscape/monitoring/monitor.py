"""Watch a training run: measure curvature and stability now and then, at a bounded cost."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from steppe.landscape.monitoring.checks import (
    check_clocks,
    check_monitor_options,
    checked_state,
    trained_params,
)
from steppe.landscape.monitoring.cost_budget import CALIBRATING_STEPS, CostBudget
from steppe.landscape.monitoring.fixed_samples import count, first_batches, limited
from steppe.landscape.monitoring.log_writers import RunLog
from steppe.landscape.monitoring.quantities import Measuring, WatchedRun
from steppe.landscape.monitoring.run_measurement import RunMeasurement, WatchedHistory
from steppe.landscape.monitoring.update_size import sampled_weights
from steppe.landscape.objective.batches import Batches
from steppe.landscape.objective.loss_weight import LossFunction, Weight
from steppe.landscape.objective.parameter_choice import Params
from steppe.landscape.operators.hessian import Product

# One of so many measurements verifies that no larger eigenvalue is missed.
_VERIFIED_EVERY = 4


class Monitor(WatchedHistory):
    r"""Watch a training run: call :meth:`step` after each step of the optimizer.

    Now and then it measures the loss around the parameters, on the same samples throughout the
    run. What it measures, by the names that its history and logs have:

    ============================ =================================================================
    ``loss``, ``gradient_norm``  the mean loss L over the samples, and ‖∇L‖₂
    ``sharpness``                SAM's: L(w + ρ∇L/‖∇L‖) − L(w)
    ``lambda_max``               the largest eigenvalue of the Hessian H
    ``lambda_max_ph``            that of P^½HP^½, with the optimizer's preconditioner P
    ``threshold``                what it must stay below, as :func:`preconditioned` tells
    ``stability``                ``lambda_max_ph/threshold``: steps are unstable above 1
    ``sam_threshold``            what ``lambda_max`` must stay below where the optimizer is SAM
                                 around SGD; it needs "loss" and "stability"
    ``update_ratio``             ‖Δw‖₂/‖w‖₂ of the last step; of more than 4 Mi elements each n-th
    ``optimizer/…``              the optimizer's ``diagnostics()``, such as α of DualAdam
    ============================ =================================================================

    Training is not changed, bit for bit: parameters, gradients, buffers, optimizer, random
    generators and modes are as they were.

    Parameters
    ----------
    model, loss_fn, batches
        As in :func:`~steppe.landscape.hessian`. The first samples are read and copied here.
    optimizer : Optimizer
        The one that trains the model.
    every : int, optional
        Number of steps between measurements. Default: as few as ``share`` allows. Under
        ``DistributedDataParallel`` it must be given, as processes have to measure together.
    share : float, default 0.05
        The most that measuring takes, of the time of training; in (0, 1]. A measurement waits until
        there is time for it and all before it. It is expected to take as long as the last one, and
        the first as long as 20 products with the Hessian, of which one is timed here. Where there
        would be more than 1000 steps between measurements, fewer samples are taken, but no fewer
        than 64.
    samples : int or None, default 512
        On how many samples to measure, the first ones of ``batches``. None: on all.
    log : object, optional
        TensorBoard's ``SummaryWriter``, a run of Weights & Biases or its module, the module
        ``mlflow``, or a function ``f(values, step)``. All but the function get names that begin
        with ``monitor/``. Default: no log.
    quantities : iterable of str, optional
        Which of "update", "optimizer", "loss", "sharpness", "lambda_max" and "stability" to
        measure. Default: all.
    params : optional
        The parameters that H is over, chosen as in :func:`~steppe.landscape.hessian`. Default:
        those that the optimizer steps.
    rho : float, default 0.05
        ρ of ``sharpness``, in the parameters' unit.
    tol : float, default 0.02
        Relative error of eigenvalues.
    product, train, weight
        As in :func:`~steppe.landscape.hessian`.
    seed : int, default 0
        Seed of the searches for eigenvalues.
    clock : callable, default ``time.perf_counter``
        Returns the time in seconds.

    Attributes
    ----------
    history : list of RunMeasurement
        All measurements; each has the step, the values, and why others are missing.

    Raises
    ------
    TypeError
        An argument is of a wrong type, or ``log`` has no method that is known.
    ValueError
        An argument is out of its range, the optimizer steps none of the model's parameters, or
        the loss cannot be measured, as the instruments say.
    RuntimeError
        The model cannot be differentiated twice: take ``product="finite-differences"``, or leave
        out "lambda_max" and "stability".

    Warns
    -----
    RuntimeWarning
        A quantity could not be measured: its values are NaN, the reason is in the history, and
        training goes on. So does it where the log raises. It is said once for each.

    Notes
    -----
    Searches for eigenvalues begin at the last eigenvector and end when that has converged. Every
    fourth one begins anew and verifies that no larger eigenvalue is missed (``verified`` in the
    history); in between, λ_max is a lower bound.

    Examples
    --------
    >>> import torch
    >>> model = nn.Linear(4, 1)
    >>> data = [(torch.randn(16, 4), torch.randn(16, 1))]
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> monitor = Monitor(model, nn.functional.mse_loss, data, optimizer, every=5)
    >>> for _ in range(10):
    ...     optimizer.zero_grad()
    ...     nn.functional.mse_loss(model(data[0][0]), data[0][1]).backward()
    ...     optimizer.step()
    ...     monitor.step()
    >>> [row.step for row in monitor.history]
    [5, 10]
    >>> monitor.history[-1].values["threshold"]
    20.0
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction | None,
        batches: Batches,
        optimizer: Optimizer,
        *,
        every: int | None = None,
        share: float = 0.05,
        samples: int | None = 512,
        log: Any = None,
        quantities: Iterable[str] | None = None,
        params: Params | None = None,
        rho: float = 0.05,
        tol: float = 0.02,
        product: Product = "double-backward",
        train: bool = False,
        weight: Weight | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._quantities = check_monitor_options(every, share, samples, quantities, rho, tol, seed)
        self._log = RunLog(log)
        chosen = trained_params(model, optimizer, params)
        options = {"train": train, "weight": weight}
        self._run = WatchedRun(model, loss_fn, optimizer, chosen, rho, tol, seed, options, product)
        objective = self._run.objective(batches)
        check_clocks(objective, every, clock)
        with self._run.left_alone():
            self._batches = first_batches(objective, samples)
        super().__init__()
        self._budget = CostBudget(clock, share, every)
        self._budget.expected = self._run.rehearse(self._batches, self._quantities, clock)
        self._vectors: dict[str, Tensor] = {}
        self._is_next = False
        self._before: list[Tensor] | None = None

    @property
    def samples(self) -> int:
        """The number of samples that it measures on, in this process."""
        return count(self._batches)

    @property
    def every(self) -> float:
        """Steps between measurements in the long run; NaN before that is known."""
        return self._budget.interval

    @property
    def cost_share(self) -> float:
        """The time that measuring has taken, over that of training without it."""
        return self._budget.cost_share

    def cost(self) -> dict[str, float]:
        """Return steps so far, samples, steps between measurements, and the share of time."""
        steps, share = self._budget.steps, self.cost_share
        return {"steps": steps, "samples": self.samples, "every": self.every, "cost_share": share}

    def step(self) -> None:
        """Take note of one step of the optimizer, and measure if it is time.

        Call it after each ``optimizer.step()``, with the parameters as the step left them.
        """
        budget = self._budget
        budget.trained()
        if self._is_next or (budget.every and budget.is_due(budget.steps)):
            self._measure(self._before)
        if budget.steps == CALIBRATING_STEPS:
            self._take_fewer_samples()
        self._is_next = budget.is_due(budget.steps + 1)
        self._before = None
        if self._is_next and "update" in self._quantities:
            with budget.measuring():
                self._before = sampled_weights(self._run.params)

    def measure(self) -> RunMeasurement:
        """Measure now, as at the end of a run, and return the new row of the history.

        Its ``update_ratio`` is NaN: the weights before the last step are not known.
        """
        self._measure(None)
        return self.history[-1]

    def _measure(self, before: list[Tensor] | None) -> None:
        budget, samples, spent = self._budget, self.samples, self._budget.seconds
        is_verified = len(self.history) % _VERIFIED_EVERY == 0
        self._run.wait_for_device()
        with budget.measuring():
            measuring = Measuring(
                self._run, self._batches, budget.steps, before, self._vectors, is_verified
            )
            measuring.measure(self._quantities)
        seconds = budget.seconds - spent
        budget.measured(seconds, is_whole=not measuring.reasons)
        row = RunMeasurement(
            step=budget.steps,
            values=measuring.values,
            reasons=measuring.reasons,
            samples=samples,
            products=measuring.products,
            seconds=seconds,
            verified=is_verified,
        )
        self.history.append(row)
        self._take_fewer_samples()
        with budget.measuring():
            self._log.report(row)

    def _take_fewer_samples(self) -> None:
        before = self.samples
        self._batches = limited(self._batches, self._budget.affordable(before))
        self._budget.expected *= self.samples / before if before else 1.0

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, as plain numbers, texts, lists and tensors.

        It holds the last eigenvectors, each as large as the parameters that are measured, and
        before a step that will be measured a copy of the weights. :func:`torch.load` reads it with
        ``weights_only=True``.
        """
        return {
            "budget": self._budget.state_dict(),
            "history": [row.to_dict() for row in self.history],
            "samples": self.samples,
            "vectors": dict(self._vectors),
            "is_next": self._is_next,
            "before": self._before,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`. The time until the next step counts for nothing.

        Raises
        ------
        TypeError, ValueError
            It is none, or that of a model with other parameters. Nothing has changed then.
        """
        found = checked_state(state, self._run.params, self.samples)
        self.history = found["history"]
        self._budget.load_state_dict(found["budget"])
        self._batches = limited(self._batches, found["samples"])
        self._vectors, self._before = found["vectors"], found["before"]
        self._is_next = found["is_next"]
