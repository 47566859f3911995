"""The base class of all optimizers: options, parameter groups, the step and its state.

Each optimizer file derives from :class:`RuleOptimizer`; checkpoints are in ``_checkpoint.py``.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import ParamsT

from steppe import _engines
from steppe._engines import (
    EngineRequest,
    Group,
    Method,
    ParamRow,
    State,
    batches_of,
    load_param,
)
from steppe.optim._dynamo_import import import_dynamo
from steppe.optim._gradient_release import ReleasingOptimizer
from steppe.optim._momenta import first_moment
from steppe.optim._options import check_options, to_plain
from steppe.optim._state import completed
from steppe.optim._step_planner import StepPlanner, members_of

Closure = Callable[[], Any]


class RuleOptimizer(ReleasingOptimizer):
    """An optimizer whose arithmetic is a rule, run by an engine.

    A subclass's constructor lists its options; ``_method`` returns the rule that a group selects.
    Options are in ``param_groups`` and all else in ``state``: copies and checkpoints are complete.

    NaN and infinite gradients reach parameters and state, as in ``torch.optim``: clip, or skip such
    steps with a ``GradScaler``.
    """

    def __init__(self, params: ParamsT, options: dict[str, Any]) -> None:
        options = {name: to_plain(value, name) for name, value in options.items()}
        check_options(options)
        import_dynamo()
        super().__init__(params, options)

    def _method(self, group: Group) -> Method:
        raise NotImplementedError

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a GradScaler may leave it to the step to unscale gradients, and to skip.

        As in ``torch.optim``, only if ``fused=True`` asks for it: a user who clips between
        backward and step expects gradients that ``scaler.unscale_`` has unscaled.
        """
        return all(group["fused"] is True for group in self.param_groups)

    @property
    def engine(self) -> str:
        """Name of the engine that runs the step; several, with commas, if parameters differ."""
        return ", ".join(sorted(self._engines_of(self.param_groups)))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with options that differ from the defaults where the group names them.

        Raises
        ------
        ValueError
            An option is out of its range, or a parameter is in another group already.
        RuntimeError
            ``fused=True`` and no fused engine takes the parameters; it says why.
        """
        own = {
            name: to_plain(value, name)
            for name, value in param_group.items()
            if name in self.defaults
        }
        check_options({**self.defaults, **own})
        super().add_param_group({**param_group, **own})
        if self.param_groups[-1]["fused"]:
            self._demand_fused()

    # As torch does for its own step: dynamo cannot follow the planning.
    @_disable_dynamo
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step with the gradients at hand.

        Parameters
        ----------
        closure
            Called first, with gradients enabled, to compute them; its loss is returned.

        Returns
        -------
        The closure's loss, or None.

        Raises
        ------
        RuntimeError
            A gradient is sparse, ``fused=True`` cannot be had, FSDP1 has flattened parameters of a
            method that needs whole ones, or the state does not fit its parameter or the options.
            Nothing has changed then.
        ValueError
            An option of a group was set to a value out of its range. Nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with_gradients = torch.is_grad_enabled()
        try:
            torch._C._set_grad_enabled(self.defaults["differentiable"])
            if self._released is not None:
                self._released.end_round()
            self._planner.step()
        except BaseException:
            # A GradScaler takes away what it has left to a step once that has ended. Who goes on
            # without a scaler would have all gradients divided by its scale.
            for name in ("grad_scale", "found_inf"):
                vars(self).pop(name, None)
            raise
        finally:
            # One call into C, where torch's context managers can be left by Ctrl-C with gradients
            # off for the rest of the process.
            torch._C._set_grad_enabled(with_gradients)
        return loss

    @torch.no_grad()
    def preconditioner(self) -> dict[Tensor, Tensor]:
        """Return the diagonal P by which the method scales each parameter's momentum.

        P is that of the next step, per unit of learning rate, computed from the state: Adam's is
        1/d with d = √v̂ + ε, InvAdam's d, SGD's 1. The contents of a buffer count as constants, so
        with critical gradients P has the weight of the gradient itself in the aggregate as a
        factor. Factors of the momentum that tend to 1, such as its bias correction, are left out.
        :func:`steppe.landscape.preconditioned` computes curvature with it.

        Returns
        -------
        dict
            For each parameter that has taken a step, a tensor of its shape (a complex one's real
            view has one more dimension), in at least float32.

        Examples
        --------
        >>> import torch, steppe
        >>> p = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> optimizer = steppe.AdamCG([p])
        >>> (p * torch.tensor([2.0, 5.0])).sum().backward()
        >>> optimizer.step()
        >>> optimizer.preconditioner()[p]  # ½/|g|: the slot's and the next gradient's mean
        tensor([0.2500, 0.1000])
        """
        params = [param for param, _ in self._all()]
        return {
            params[row.index]: row.shard.like(self._preconditioner(row))
            for row in self._rows_with_state()
        }

    @torch.no_grad()
    def master_params(self) -> dict[Tensor, Tensor]:
        """Return every parameter as the optimizer has it, in at least float32.

        With ``param_error`` that is the weight of 24 bits, without it the parameter itself: what is
        to be saved or evaluated where bfloat16 is not exact enough.

        Returns
        -------
        dict
            For each parameter a new tensor of its shape (a complex one's real view has one more
            dimension); of a sharded one, sharded alike.

        Examples
        --------
        >>> import torch, steppe
        >>> p = torch.tensor([1.0], dtype=torch.bfloat16, requires_grad=True)
        >>> optimizer = steppe.DualAdam([p], lr=1e-3, param_error="int8")
        >>> p.sum().backward()
        >>> optimizer.step()  # by lr: less than half a step of bfloat16 between 0.5 and 1
        >>> p.item(), round(optimizer.master_params()[p].item(), 4)
        (1.0, 0.999)
        """
        params = [param for param, _ in self._all()]
        return {
            params[row.index]: row.shard.like(load_param(row).clone())
            for row in self._rows(self.param_groups)
        }

    def _preconditioner(self, row: ParamRow) -> Tensor:
        raise NotImplementedError

    def _momentum(self, row: ParamRow) -> Tensor:
        """Return what the next step goes along if the gradient is 0, before it is scaled."""
        return first_moment(row)

    @torch.no_grad()
    def _momenta(self) -> dict[Tensor, Tensor]:
        """Return this process's part of each parameter's momentum, as real numbers."""
        params = [param for param, _ in self._all()]
        return {params[row.index]: self._momentum(row) for row in self._rows_with_state()}

    @property
    def _planner(self) -> StepPlanner:
        """What plans the steps; a copy of the optimizer makes one of its own."""
        if "_own_planner" not in vars(self):
            self._own_planner = StepPlanner(self)
        return self._own_planner

    def _demand_fused(self) -> None:
        """Remove the last group again if it demands a fused kernel and there is none."""
        try:
            self._engines_of(self.param_groups[-1:])
        except (RuntimeError, ValueError):
            self.param_groups.pop()
            raise

    def _all(self) -> Iterator[tuple[Tensor, Group]]:
        for group in self.param_groups:
            for param in group["params"]:
                yield param, group

    def _request(self, group: Group) -> EngineRequest:
        return EngineRequest(
            self._method(group), group["fused"], group["capturable"], group["differentiable"]
        )

    def _engines_of(self, groups: list[Group]) -> set[str]:
        """Return the names of the engines that would step the groups' parameters."""
        rows = self._rows(groups)
        requests = {id(group): self._request(group) for group in groups}
        return {_engines.choose(batch).name for batch in batches_of(rows, requests)}

    def _rows(self, groups: list[Group]) -> list[ParamRow]:
        """Return a row for every parameter of the groups, with its state as of the next step.

        Those that have taken no step have none yet; those of a lazy module, no shape.
        """
        self._planner.settle_options()
        self._kept_means.forget_stale(self.state)
        wanted = set(map(id, groups))
        return [
            ParamRow.of(number, param, self._completed_state(param, group), group, place)
            for number, param, group, place in members_of(self.param_groups)
            if id(group) in wanted and not is_lazy(param)
        ]

    def _completed_state(self, param: Tensor, group: Group) -> State:
        return completed(self.state.get(param, {}), param, self._method(group), group)

    def _rows_with_state(self) -> list[ParamRow]:
        return [row for row in self._rows(self.param_groups) if "step" in row.state]
