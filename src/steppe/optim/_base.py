"""The base class of all optimizers: options, parameter groups, the step and its state.

Each optimizer file derives from :class:`RuleOptimizer`; checkpoints are in ``_checkpoint.py``.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.nn import Parameter
from torch.optim.optimizer import ParamsT

from steppe import _engines
from steppe._engines import (
    EngineRequest,
    Group,
    Method,
    ParamRow,
    Plan,
    batches_of,
    is_sharded,
    unpack_scales,
)
from steppe.optim._checkpoint import CheckpointedOptimizer
from steppe.optim._dynamo_import import import_dynamo
from steppe.optim._fsdp1 import check_takes_fsdp1
from steppe.optim._options import check_options, to_plain
from steppe.optim._sharded_params import check_shards
from steppe.optim._state import add_missing_state, check_state_unchanged

Closure = Callable[[], Any]


def arguments(names: dict[str, Any]) -> dict[str, Any]:
    """Return the options among a constructor's ``locals()``: they become the groups' defaults."""
    return {k: v for k, v in names.items() if k not in ("self", "params", "__class__")}


class RuleOptimizer(CheckpointedOptimizer):
    """An optimizer whose arithmetic is a rule, run by an engine.

    A subclass lists its options in its constructor, and ``_method`` returns the rule that a
    group's options select. All options are in ``param_groups`` and all else is in ``state``, so
    copies, pickles and checkpoints are complete.

    NaN and infinite gradients reach parameters and state, as in ``torch.optim``: clip, or skip such
    steps with a ``GradScaler``.
    """

    # Caches: computed from groups and state, so copies and pickles need not have them.
    _plan: Plan | None = None
    _plan_key: object = None

    def __init__(self, params: ParamsT, options: dict[str, Any]) -> None:
        options = {name: to_plain(value) for name, value in options.items()}
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
            name: to_plain(value) for name, value in param_group.items() if name in self.defaults
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
            A gradient is sparse, ``fused=True`` cannot be had, or FSDP1 has flattened parameters
            of a method that needs whole ones. Nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            plan = self._planned()
            plan.grad_scale = getattr(self, "grad_scale", None)
            plan.found_inf = getattr(self, "found_inf", None)
            try:
                _engines.step(plan)
            finally:
                # They would otherwise lie in memory beside the next ones.
                for row in plan.rows:
                    row.grad = row.param
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

    def _preconditioner(self, row: ParamRow) -> Tensor:
        raise NotImplementedError

    def _demand_fused(self) -> None:
        """Remove the last group again if it demands a fused kernel and there is none."""
        try:
            self._engines_of(self.param_groups[-1:])
        except RuntimeError:
            self.param_groups.pop()
            raise

    def _planned(self) -> Plan:
        """Check all gradients, then complete the state, and plan the step if anything changed."""
        groups = self.param_groups
        params = [param for group in groups for param in group["params"]]
        grads = [param.grad for param in params]
        self._check_gradients(params, grads)
        key: list[Any] = [
            (
                id(group),
                len(group["params"]),
                group.get("capacity"),
                group.get("scope"),
                group["state_dtype"],
                group["fused"],
                group["capturable"],
                group["differentiable"],
            )
            for group in groups
        ]
        key += [self._method(group) for group in groups]
        if (
            self._plan is None
            or self._plan_key != key
            or not self._plan.takes(params, grads, self.state)
        ):
            self._plan, self._plan_key = self._new_plan(grads), key
            self._plan.set_gradients(grads)
        return self._plan

    def _check_gradients(self, params: list[Tensor], grads: list[Tensor | None]) -> None:
        for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
            if grad is None:
                continue
            # Types first: that is all for most, and there may be ten thousand.
            is_usual = type(grad) is Tensor and type(param) in (Parameter, Tensor)
            if not is_usual and is_sharded(grad) != is_sharded(param):
                kinds = ["a DTensor" if is_sharded(x) else "a plain tensor" for x in (param, grad)]
                raise RuntimeError(
                    f"{self._place(index)}, shape {tuple(param.shape)}, is {kinds[0]} and its "
                    f"gradient {kinds[1]}; expected both of one kind"
                )
            if grad.layout is not torch.strided:
                raise RuntimeError(
                    f"{type(self).__name__} does not take {grad.layout} gradients: "
                    f"{self._place(index)}, shape {tuple(grad.shape)}; "
                    "use dense ones, e.g. Embedding(sparse=False)"
                )

    def _new_plan(self, grads: list[Tensor | None]) -> Plan:
        requests = {id(group): self._request(group) for group in self.param_groups}
        check_shards(self._all(), self._place)
        for param, group in self._all():
            check_takes_fsdp1(param, requests[id(group)].method, group, type(self).__name__)
        for (param, group), grad in zip(self._all(), grads, strict=True):
            if grad is not None:
                method = requests[id(group)].method
                check_state_unchanged(self.state.get(param, {}), param, method, group)
        for (param, group), grad in zip(self._all(), grads, strict=True):
            if grad is not None:
                add_missing_state(self.state[param], param, requests[id(group)].method, group)
        return Plan(list(self._all()), grads, self.state, requests)

    def _place(self, number: int) -> str:
        """Say where a parameter stands, as the user counts them."""
        places = [
            f"parameter {index} of group {position}"
            for position, group in enumerate(self.param_groups)
            for index in range(len(group["params"]))
        ]
        return places[number]

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
        requests = {id(group): self._request(group) for group in groups}
        return {_engines.choose(batch).name for batch in batches_of(self._rows(groups), requests)}

    def _rows(self, groups: list[Group]) -> list[ParamRow]:
        """Return a row for every parameter of the groups, also those that have no state yet."""
        return [
            ParamRow.of(number, param, self.state.get(param, {}), group)
            for number, (param, group) in enumerate(self._all())
            if any(group is wanted for wanted in groups)
        ]

    def _rows_with_state(self) -> list[ParamRow]:
        for param, _ in self._all():
            # ZeroRedundancyOptimizer puts a checkpoint's state, scales by lines, in as it is.
            unpack_scales(self.state.get(param, {}), param)
        return [row for row in self._rows(self.param_groups) if row.state]
