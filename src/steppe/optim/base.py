"""What all optimizers share: options, state, the step, checkpoints."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import Optimizer, ParamsT

from steppe import engines
from steppe.engines import Demand, Kernel, Plan, Row
from steppe.engines.plan import Group, batches, real
from steppe.optim import checkpoint
from steppe.optim.options import check, plain
from steppe.optim.state import check_unchanged, complete

Closure = Callable[[], Any]


def arguments(names: dict[str, Any]) -> dict[str, Any]:
    """Keep of a constructor's ``locals()`` the options, which become the group's defaults."""
    return {k: v for k, v in names.items() if k not in ("self", "params", "__class__")}


class RuleOptimizer(Optimizer):
    """An optimizer whose arithmetic is a rule, run by an engine.

    A subclass names its options in its constructor and says in ``_kernel`` which rule a group's
    options ask for. All configuration stands in ``param_groups`` and all else in ``state``, so
    that copies, pickles and checkpoints are complete.

    NaN and infinite gradients are not repaired: they reach parameters and state as in
    ``torch.optim``. Skip such steps with a ``GradScaler``, or clip.
    """

    # What is found again from groups and state, so that copies and pickles need not have it.
    _plan: Plan | None = None
    _plan_key: object = None

    def __init__(self, params: ParamsT, options: dict[str, Any]) -> None:
        options = {name: plain(value) for name, value in options.items()}
        check(options)
        super().__init__(params, options)

    def _kernel(self, group: Group) -> Kernel:
        raise NotImplementedError

    @property
    def engine(self) -> str:
        """Name of the engine that runs the step; several, if parameters differ."""
        return ", ".join(sorted(self._engines_of(self.param_groups)))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with options that differ from the defaults where the group names them.

        Raises
        ------
        ValueError
            An option is out of its range, or a parameter is in a group already.
        RuntimeError
            ``fused=True`` and no fused engine takes the parameters; it says why.
        """
        own = {name: plain(value) for name, value in param_group.items() if name in self.defaults}
        check({**self.defaults, **own})
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
            A gradient is sparse, or ``fused=True`` cannot be had. Nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            plan = self._planned()
            try:
                engines.step(plan)
            finally:
                plan.release_gradients()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint and go on exactly where it was saved.

        Every tensor keeps the number format it was saved in: torch.optim would round the state of
        half-precision parameters, step counts and keys included, to the parameter's own format.

        Raises
        ------
        ValueError
            The checkpoint does not fit; the message names the difference. Nothing has changed.
        """
        accepted: dict[str, Any] = {}

        def inspect(_: Optimizer, incoming: dict[str, Any]) -> None:
            checkpoint.check_fits(self, self._kernel, incoming)
            accepted.update(incoming)

        def restore(_: Optimizer) -> None:
            checkpoint.restore(self, accepted)

        # Hooks of the user's may change what is loaded: look after them, and restore before them.
        before = self.register_load_state_dict_pre_hook(inspect)
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _demand_fused(self) -> None:
        """Take the last group back if it demands what cannot be had."""
        try:
            self._engines_of(self.param_groups[-1:])
        except RuntimeError:
            self.param_groups.pop()
            raise

    def _planned(self) -> Plan:
        """Check all gradients, then complete the state, and plan the step if anything changed."""
        numbers, params, grads, groups = self._active()
        demands = {id(group): self._demand(group) for group in self.param_groups}
        fixed = [(group.get("capacity"), group["state_dtype"]) for group in self.param_groups]
        states = list(map(self.state.get, params))
        key = demands, fixed
        plan = self._plan if self._plan_key == key else None
        if plan is None or not plan.fits(params, states, groups):
            for param, group in zip(params, groups, strict=True):
                kernel = demands[id(group)].kernel
                check_unchanged(self.state.get(param, {}), param, kernel, group)
            for param, group in zip(params, groups, strict=True):
                complete(self.state[param], param, demands[id(group)].kernel, group)
            completed = [self.state[param] for param in params]
            plan = Plan(numbers, params, completed, groups, demands)
            self._plan, self._plan_key = plan, key
        plan.set_gradients(grads)
        return plan

    def _active(self) -> tuple[list[int], list[Tensor], list[Tensor], list[Group]]:
        """Return the parameters that have gradients: number, parameter, gradient and group."""
        numbers, params, grads, groups = [], [], [], []
        for number, (param, group) in enumerate(self._all()):
            grad = param.grad
            if grad is None:
                continue
            if grad.layout != torch.strided:
                raise RuntimeError(
                    f"{type(self).__name__} does not take {grad.layout} gradients: "
                    f"{self._place(number)}, shape {tuple(param.shape)}; "
                    "use dense ones, e.g. Embedding(sparse=False)"
                )
            numbers.append(number)
            params.append(param)
            grads.append(grad)
            groups.append(group)
        return numbers, params, grads, groups

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

    def _demand(self, group: Group) -> Demand:
        return Demand(
            self._kernel(group), group["fused"], group["capturable"], group["differentiable"]
        )

    def _engines_of(self, groups: list[Group]) -> set[str]:
        """Return the names of the engines that the groups' parameters would be stepped by."""
        demands = {id(group): self._demand(group) for group in groups}
        return {engines.choose(batch).name for batch in batches(self._rows(groups), demands)}

    def _rows(self, groups: list[Group]) -> list[Row]:
        """Return a row for every parameter of the groups, also those that have no state yet."""
        return [
            Row(number, real(param), real(param), self.state.get(param, {}), group)
            for number, (param, group) in enumerate(self._all())
            if any(group is wanted for wanted in groups)
        ]

    def _rows_with_state(self) -> list[Row]:
        return [row for row in self._rows(self.param_groups) if row.state]
