"""What all optimizers share: options, state, the step, checkpoints."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.nn import Parameter
from torch.optim.optimizer import Optimizer, ParamsT

from steppe import _engines
from steppe._engines import (
    EngineRequest,
    Group,
    Method,
    ParamRow,
    Plan,
    batches_of,
    is_member,
    is_sharded,
    unpack_scales,
)
from steppe.optim import _checkpoint
from steppe.optim._flattened import check_whole
from steppe.optim._options import check, plain
from steppe.optim._state import check_unchanged, complete

Closure = Callable[[], Any]


def arguments(names: dict[str, Any]) -> dict[str, Any]:
    """Keep of a constructor's ``locals()`` the options, which become the group's defaults."""
    return {k: v for k, v in names.items() if k not in ("self", "params", "__class__")}


class RuleOptimizer(Optimizer):
    """An optimizer whose arithmetic is a rule, run by an engine.

    A subclass names its options in its constructor and says in ``_method`` which rule a group's
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

    def _method(self, group: Group) -> Method:
        raise NotImplementedError

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a GradScaler may leave unscaling, and skipping the step, to the kernels.

        As in ``torch.optim``, where fused kernels are demanded: others, which clip in between,
        would not find the gradients unscaled.
        """
        return all(group["fused"] is True for group in self.param_groups)

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

        Per unit of learning rate, from the state as it is and with v's bias corrected: Adam's is
        1/d, InvAdam's d, SGD's 1. What a buffer remembers counts as constant: of critical
        gradients P has the weight of the gradient itself in the aggregate. Factors of the momentum
        that fade with the steps, such as its bias correction, are left out.
        :func:`steppe.landscape.preconditioned` makes an instrument of it.

        Returns
        -------
        dict
            For each parameter that has taken a step a tensor of its shape (of a complex one's
            real view), in at least float32.

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

    def state_dict(self) -> dict[str, Any]:
        """Return options and state, by the numbers of the parameters.

        Sharded parameters have sharded state, which :mod:`torch.distributed.checkpoint` saves, and
        loads in any number of processes. What 8-bit state needs for that is in docs/scaling.md.
        """
        # A user's hooks are to see what is saved.
        hook = self.register_state_dict_post_hook(_checkpoint.portable, prepend=True)
        try:
            return super().state_dict()
        finally:
            hook.remove()

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
            _checkpoint.check_fits(self, self._method, incoming)
            accepted.update(incoming)

        def restore(_: Optimizer) -> None:
            _checkpoint.restore(self, accepted)

        # Hooks of the user's may change what is loaded: look after them, and restore before them.
        before = self.register_load_state_dict_pre_hook(inspect)
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _demand_fused(self) -> None:
        """Take the last group back if it requests what cannot be had."""
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

    def _check_shards(self) -> None:
        param: Any
        for number, (param, group) in enumerate(self._all()):
            if not is_sharded(param):
                continue
            place = f"{self._place(number)}, shape {tuple(param.shape)}"
            if group["differentiable"]:
                raise RuntimeError(
                    f"differentiable=True does not take sharded parameters: {place}; use plain "
                    "tensors"
                )
            if not is_member(param):
                raise RuntimeError(
                    f"this process has no part of {place}, on {param.device_mesh}: expected "
                    "optimizers that hold the same parameters in all processes of a mesh, and in "
                    "no others"
                )

    def _new_plan(self, grads: list[Tensor | None]) -> Plan:
        requests = {id(group): self._request(group) for group in self.param_groups}
        self._check_shards()
        for param, group in self._all():
            check_whole(param, requests[id(group)].method, group, type(self).__name__)
        for (param, group), grad in zip(self._all(), grads, strict=True):
            if grad is not None:
                method = requests[id(group)].method
                check_unchanged(self.state.get(param, {}), param, method, group)
        for (param, group), grad in zip(self._all(), grads, strict=True):
            if grad is not None:
                complete(self.state[param], param, requests[id(group)].method, group)
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
        """Return the names of the engines that the groups' parameters would be stepped by."""
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
            # As in a checkpoint, where ZeroRedundancyOptimizer has loaded one.
            unpack_scales(self.state.get(param, {}), param)
        return [row for row in self._rows(self.param_groups) if row.state]
