"""What a step does before the engines: check everything, make a plan once, and keep it.

:class:`StepPlanner` steps all parameters of an optimizer, or one alone, as released gradients do.
"""

from collections import Counter
from collections.abc import Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from steppe import _engines
from steppe._engines import Group, ParamRow, Plan, State
from steppe.optim._fsdp1 import check_takes_fsdp1
from steppe.optim._group_options import GroupOptions, settled_options
from steppe.optim._kept_means import KeptMeans, version_of
from steppe.optim._sharded_params import check_shards
from steppe.optim._state import add_missing_state, has_complete_state, unchanged_if_refused
from steppe.optim._state_checks import check_state
from steppe.optim._step_checks import check_format, check_gradients, check_takes_error

if TYPE_CHECKING:
    from steppe.optim._base import RuleOptimizer

Grads = list[Tensor | None]

# What a plan goes by of a group's options.
_planned_of = attrgetter("planned")


class NumberedParam(NamedTuple):
    """A parameter of an optimizer: its number among all, its group, and its place in words."""

    number: int
    param: Tensor
    group: Group
    place: str


def members_of(groups: list[Group]) -> list[NumberedParam]:
    """Return the parameters of groups; a place is as the user counts them."""
    found: list[NumberedParam] = []
    for position, group in enumerate(groups):
        for index, param in enumerate(group["params"]):
            place = f"parameter {index} of group {position}"
            found.append(NumberedParam(len(found), param, group, place))
    return found


class StepPlanner:
    """The plan of an optimizer's steps, kept as long as parameters, state and options allow.

    Parameters
    ----------
    optimizer
        Whose parameters are stepped.
    member
        The only one of them that is; None for all.
    """

    def __init__(self, optimizer: "RuleOptimizer", member: NumberedParam | None = None) -> None:
        self._optimizer, self._member = optimizer, member
        self._own_means = KeptMeans()
        self._options: Mapping[int, GroupOptions] = MappingProxyType({})
        self._key: object = None
        self.plan: Plan | None = None

    def step(self) -> None:
        """Take one step with the gradients at hand.

        Raises
        ------
        RuntimeError, ValueError
            As the optimizer's step does. Nothing has changed then.
        """
        optimizer = self._optimizer
        # Once more where a parameter or its state has another shape, format or layout now.
        for _ in range(2):
            plan = self.planned()
            if plan is None:
                self._step_in_turns()
                return
            # Not by a function: each file that takes part in a step is entered once.
            plan.grad_scale = getattr(optimizer, "grad_scale", None)
            plan.found_inf = getattr(optimizer, "found_inf", None)
            kept = optimizer._kept_means if self._member is None else self._own_means
            try:
                if _engines.step(plan):
                    return
            finally:
                # Also of a step that was stopped: means and moments belong together in any row.
                kept.versions = [*map(version_of, kept.tensors)]
                # They would otherwise lie in memory beside the next ones.
                for batch in plan.batches:
                    batch.grads = []
            self.plan = None
        raise RuntimeError(
            "parameters or state changed while a step was planned; do not change them in another "
            "thread meanwhile"
        )

    def planned(self) -> Plan | None:
        """Check everything, and return the plan of the step; None if it goes in turns."""
        optimizer, groups = self._optimizer, self._optimizer.param_groups
        params, states = self._params(), self._states()
        grads = [param.grad for param in params]
        kept = optimizer._kept_means if self._member is None else self._own_means
        key = [(id(group), len(group["params"])) for group in groups], self.settle_options()
        check_gradients(params, grads, type(optimizer).__name__, self._place)
        if self.plan is None or self._key != key:
            if any(_turns(params)):
                return None
        elif (
            # Nobody has written to moments without their kept mean.
            [*map(version_of, kept.tensors)] == kept.versions
            and self.plan.takes(params, grads, states)
        ):
            return self.plan
        self.plan, self._key = self._new_plan(grads), key
        return self.plan

    def settle_options(self) -> list[tuple[Any, ...]]:
        """Check the options that have changed in mid-run; return those that a plan goes by."""
        optimizer = self._optimizer
        defaults = {**optimizer.defaults, **optimizer._class_defaults}
        self._options = settled_options(
            optimizer.param_groups, defaults, self._options, optimizer._method
        )
        return [*map(_planned_of, self._options.values())]

    def _step_in_turns(self) -> None:
        """Take two steps, one after the other, with what is listed twice, as in torch.optim."""
        params = self._params()
        turns = _turns(params)
        for turn in range(max(turns) + 1):
            grads = [p.grad if i == turn else None for i, p in zip(turns, params, strict=True)]
            plan = self._new_plan(grads, only_present=True)
            plan.grad_scale = getattr(self._optimizer, "grad_scale", None)
            plan.found_inf = getattr(self._optimizer, "found_inf", None)
            _engines.step(plan)
            self._note_means()

    def _new_plan(self, grads: Grads, *, only_present: bool = False) -> Plan:
        optimizer, state = self._optimizer, self._optimizer.state
        requests = {id(group): optimizer._request(group) for group in optimizer.param_groups}
        members = self.members()
        _check_members(optimizer, members, grads)
        params = [member.param for member in members]
        with unchanged_if_refused(state, params):
            optimizer._kept_means.forget_stale(state)
            self._own_means.forget_stale(state)
            rows = []
            for (number, param, group, place), grad in zip(members, grads, strict=True):
                method = requests[id(group)].method
                if grad is not None:
                    add_missing_state(state[param], param, method, group)
                # Of all with state, so that the plan stays when other parameters have gradients.
                elif only_present or not has_complete_state(
                    state.get(param, {}), param, method, group
                ):
                    continue
                rows.append(ParamRow.of(number, param, state[param], group, place))
            first = members[0].number if members else 0
            plan = Plan(rows, params, self._states(), requests, first=first)
            _engines.prepare(plan)
            plan.takes(params, grads, self._states())
            _engines.check(plan)
        self._note_means()
        return plan

    def members(self) -> list[NumberedParam]:
        """Return the parameters that are stepped.

        Raises
        ------
        RuntimeError
            The only one is in no group any more.
        """
        groups = self._optimizer.param_groups
        if self._member is None:
            return members_of(groups)
        if not any(group is self._member.group for group in groups):
            # Loading a checkpoint makes the groups anew.
            found = [each for each in members_of(groups) if each.param is self._member.param]
            if not found:
                raise RuntimeError(
                    f"what was {self._member.place} is in no group any more: remove() what "
                    "release_gradients returned, and call that again"
                )
            self._member = found[0]
        return [self._member]

    def _params(self) -> list[Tensor]:
        if self._member is not None:
            return [self._member.param]
        return [param for group in self._optimizer.param_groups for param in group["params"]]

    def _states(self) -> Any:
        """Return the states of the parameters that are stepped."""
        if self._member is None:
            return self._optimizer.state
        param = self._member.param
        found: dict[Tensor, State] = {param: self._optimizer.state[param]}
        return found

    def _place(self, index: int) -> str:
        return self.members()[index].place

    def _note_means(self) -> None:
        if self._member is None:
            self._optimizer._note_means()
        else:
            self._own_means = KeptMeans([self._member.param], self._optimizer.state)


def _check_members(optimizer: "RuleOptimizer", members: list[NumberedParam], grads: Grads) -> None:
    """Refuse parameters and states that cannot be stepped."""
    check_shards([(param, group) for _, param, group, _ in members], lambda i: members[i].place)
    for (_, param, group, place), grad in zip(members, grads, strict=True):
        check_format(param, grad, place, differentiable=optimizer.defaults["differentiable"])
        check_takes_error(param, grad, place, group.get("param_error"))
        method = optimizer._method(group)
        check_takes_fsdp1(param, method, group, type(optimizer).__name__)
        # Also where there is no gradient: what is stepped beside can be loaded, too.
        if state := optimizer.state.get(param):
            check_state(state, param, method, group, place, optimizer._optional_state)


def _turns(params: list[Tensor]) -> list[int]:
    """Return how often each parameter has been listed before."""
    counts: Counter[int] = Counter()
    turns = []
    for param in params:
        turns.append(counts[id(param)])
        counts[id(param)] += 1
    return turns
