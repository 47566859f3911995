"""The base class of all optimizers: options, parameter groups, the step and its state.

Each optimizer file derives from :class:`RuleOptimizer`; checkpoints are in ``_checkpoint.py``.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from operator import is_, itemgetter
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.nn import Parameter
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import ParamsT

from steppe import _engines
from steppe._engines import (
    EngineRequest,
    Group,
    Method,
    ParamRow,
    Plan,
    State,
    batches_of,
    is_sharded,
)
from steppe.optim._checkpoint import CheckpointedOptimizer
from steppe.optim._fsdp1 import check_takes_fsdp1
from steppe.optim._options import (
    check_options,
    class_defaults,
    is_live,
    settle_options,
    to_plain,
)
from steppe.optim._sharded_params import check_shards
from steppe.optim._state import add_missing_state, completed
from steppe.optim._state_checks import check_state

Closure = Callable[[], Any]

#: Options that a plan goes by, besides those that select the method.
_PLANNED_OPTIONS = ("capacity", "scope", "state_dtype", "fused", "capturable", "differentiable")


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
    # Of each group, by its identity: its options as they were checked, and what a plan goes by.
    _options_seen: Mapping[int, tuple[tuple[Any, ...], tuple[Any, ...]]] = MappingProxyType({})

    def __init__(self, params: ParamsT, options: dict[str, Any]) -> None:
        options = {name: to_plain(value, name) for name, value in options.items()}
        check_options(options)
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
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            for plan in self._plans():
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
        except (RuntimeError, ValueError):
            self.param_groups.pop()
            raise

    def _plans(self) -> Iterator[Plan]:
        """Check everything, then yield the plan of the step.

        A parameter that is listed twice in a group takes two steps, one after the other, as in
        torch.optim; then there is a plan for each.
        """
        options = self._settled_options()
        params = [param for group in self.param_groups for param in group["params"]]
        grads = [param.grad for param in params]
        self._check_gradients(params, grads)
        key = [(id(group), len(group["params"])) for group in self.param_groups], options
        is_right = self._plan is not None and self._plan_key == key
        if self._plan is not None and is_right and self._plan.takes(params, grads, self.state):
            yield self._plan
            return
        turns = _turns(params)
        if not any(turns):
            self._plan, self._plan_key = self._new_plan(grads), key
            self._plan.set_gradients(grads)
            yield self._plan
            return
        self._plan = None
        for turn in range(max(turns) + 1):
            own = [grad if i == turn else None for i, grad in zip(turns, grads, strict=True)]
            plan = self._new_plan(own)
            plan.set_gradients(own)
            yield plan

    def _settled_options(self) -> list[tuple[Any, ...]]:
        """Check the options that have changed, make them plain; return those that a plan goes by.

        Who changes a group in mid-run is told here, and not when the checkpoint is to be loaded.

        Raises
        ------
        ValueError
            An option is out of its range.
        """
        names, seen = tuple(self.defaults), self._options_seen
        values_of = itemgetter(*names)
        found = {}
        for number, group in enumerate(self.param_groups):
            try:
                values = values_of(group)
            except KeyError:
                self._add_missing_options(group)
                values = values_of(group)
            last = seen.get(id(group))
            if last is None or not all(map(is_, values, last[0])):
                before = (None,) * len(names) if last is None else last[0]
                changed = [n for n, x, y in zip(names, values, before, strict=True) if x is not y]
                settle_options(group, names if last is None else changed, f" in group {number}")
                is_planned_alike = last is not None and all(map(is_live, changed))
                last = values_of(group), last[1] if is_planned_alike else self._plan_options(group)
            found[id(group)] = last
        self._options_seen = found
        return [planned for _, planned in found.values()]

    def _plan_options(self, group: Group) -> tuple[Any, ...]:
        """Return what a plan goes by of a group's options."""
        return (*(group.get(name) for name in _PLANNED_OPTIONS), self._method(group))

    def _add_missing_options(self, group: Group) -> None:
        """Give a group the options that it lacks, as torch.optim does where it loads groups."""
        for name, value in {**self.defaults, **class_defaults(type(self))}.items():
            group.setdefault(name, value)

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
        members = list(self._all())
        check_shards(members, self._place)
        for index, (param, group) in enumerate(members):
            method = requests[id(group)].method
            check_takes_fsdp1(param, method, group, type(self).__name__)
            # Also where there is no gradient: what is stepped beside can be loaded, too.
            if state := self.state.get(param):
                name = self._place(index)
                check_state(state, param, method, group, name, self._optional_state)
        for (param, group), grad in zip(members, grads, strict=True):
            if grad is not None:
                add_missing_state(self.state[param], param, requests[id(group)].method, group)
        return Plan(members, grads, self.state, requests)

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
        self._settled_options()
        requests = {id(group): self._request(group) for group in groups}
        return {_engines.choose(batch).name for batch in batches_of(self._rows(groups), requests)}

    def _rows(self, groups: list[Group]) -> list[ParamRow]:
        """Return a row for every parameter of the groups, with its state as of the next step.

        Those that have taken no step have none yet; those of a lazy module, no shape.
        """
        self._settled_options()
        return [
            ParamRow.of(number, param, self._completed_state(param, group), group)
            for number, (param, group) in enumerate(self._all())
            if any(group is wanted for wanted in groups) and not is_lazy(param)
        ]

    def _completed_state(self, param: Tensor, group: Group) -> State:
        return completed(self.state.get(param, {}), param, self._method(group), group)

    def _rows_with_state(self) -> list[ParamRow]:
        return [row for row in self._rows(self.param_groups) if "step" in row.state]


def _turns(params: list[Tensor]) -> list[int]:
    """Return how often each parameter has been listed before."""
    counts: Counter[int] = Counter()
    turns = []
    for param in params:
        turns.append(counts[id(param)])
        counts[id(param)] += 1
    return turns
