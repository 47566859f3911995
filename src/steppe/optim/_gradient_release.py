"""Step each parameter in the backward pass, as soon as its gradient is there, and free that.

The gradients of a model then never lie in memory together. The method that users call is
:meth:`ReleasingOptimizer.release_gradients`.
"""

from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from steppe._engines import Group, needs_global_norm
from steppe.optim._checkpoint import CheckpointedOptimizer
from steppe.optim._step_planner import NumberedParam, StepPlanner, members_of


class ReleasedGradient(Tensor):
    """What stands at ``p.grad`` from a parameter's step in the backward pass to ``step()``.

    It has the parameter's shape and no memory. Who reads it, or accumulates into it, is told that
    there is no gradient any more, where ``None`` would pass for one that is zero.
    """

    _place: str

    @staticmethod
    def __new__(cls, param: Tensor, place: str) -> Self:
        make: Any = Tensor._make_wrapper_subclass
        found: Self = make(
            cls, param.shape, strides=param.stride(), dtype=param.dtype, device=param.device
        )
        found._place = place
        return found

    def __init__(self, param: Tensor, place: str) -> None:
        super().__init__()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"ReleasedGradient({self._place}, shape {tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> NoReturn:
        """Refuse to compute with it.

        Raises
        ------
        RuntimeError
            It names the parameter.
        """
        found = _first(cls, [args, kwargs or {}])
        raise RuntimeError(
            f"the gradient of {found._place}, shape {tuple(found.shape)}, was released: its "
            "parameter has taken its step in the backward pass. Call optimizer.step() after each "
            "backward pass; to accumulate gradients, to clip by their norm, or to unscale them, "
            "train without release_gradients"
        )


def _first(kind: type, values: Any) -> Any:
    """Return the first tensor of a class among an operation's arguments."""
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, kind):
            return value
        found = _first(kind, value) if isinstance(value, list | tuple | dict) else None
        if found is not None:
            return found
    return None


class ReleasedGradients:
    """The hooks by which parameters take their steps; made by ``release_gradients``.

    As a context it removes them at its end.
    """

    def __init__(self, optimizer: Any, model: nn.Module) -> None:
        members = members_of(optimizer.param_groups)
        _check(optimizer, model, members)
        self._optimizer = optimizer
        self._params: list[Tensor] = []
        self._hooks: list[RemovableHandle] = []
        for member in members:
            if member.param.requires_grad:
                self._params.append(member.param)
                register: Any = member.param.register_post_accumulate_grad_hook
                self._hooks.append(register(_Release(optimizer, member)))

    def end_round(self) -> None:
        """Make room for the next backward pass, and note that means and moments fit."""
        self._forget()
        self._optimizer._note_means()

    def remove(self) -> None:
        """Let parameters keep their gradients again, for ``step()``."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._forget()
        if self._optimizer._released is self:
            self._optimizer._released = None

    def _forget(self) -> None:
        for param in self._params:
            if type(param.grad) is ReleasedGradient:
                param.grad = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class ReleasingOptimizer(CheckpointedOptimizer):
    """An optimizer whose parameters can take their steps in the backward pass."""

    # A copy of the optimizer has no hooks.
    _released: ReleasedGradients | None = None

    def release_gradients(self, model: nn.Module) -> ReleasedGradients:
        """Let each parameter take its step in the backward pass, and free its gradient at once.

        The training loop stays as it is. ``loss.backward()`` steps every parameter as soon as its
        gradient is complete, with the options that its group has then; the gradients of all
        parameters never lie in memory together. ``step()`` ends the round, and steps what has been
        added since. Numbers are those of training without it, bit for bit.

        Between its step and ``step()`` a parameter has no gradient, and who reads it is told so:
        a second backward pass, which would accumulate gradients, ``clip_grad_norm_``, and a
        ``GradScaler`` raise an error that names the parameter. Clip values of gradients by a hook
        of the parameter (``p.register_hook``), which comes before.

        Parameters
        ----------
        model
            The model whose parameters this optimizer has. Sharded by FSDP2 it may be.

        Returns
        -------
        ReleasedGradients
            ``remove()`` ends it, and so does leaving it as a context.

        Raises
        ------
        TypeError
            ``model`` is no module, or is in ``DistributedDataParallel`` or FSDP1, which sum
            gradients up later.
        ValueError
            A group goes by the norm of all gradients (``scope="global"``: use ``"tensor"``) or is
            ``differentiable``; or a parameter is not the model's.
        RuntimeError
            The gradients are released already.

        Examples
        --------
        >>> import torch, steppe
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = steppe.DualAdam(model.parameters())
        >>> released = optimizer.release_gradients(model)
        >>> model(torch.ones(4, 3)).square().mean().backward()  # the parameters have moved
        >>> optimizer.state[model.weight]["step"].item()
        1.0
        >>> optimizer.step()
        """
        self._released = ReleasedGradients(self, model)
        return self._released


class _Release:
    """What a parameter's gradient is given to, once it is complete."""

    def __init__(self, optimizer: Any, member: NumberedParam) -> None:
        self._optimizer = optimizer
        self._planner = StepPlanner(optimizer, member)

    @torch.no_grad()
    def __call__(self, param: Tensor) -> None:
        """Step the parameter, and free its gradient."""
        (member,) = self._planner.members()
        _check_group(self._optimizer, member.group)
        self._planner.step()
        param.grad = None  # first, so that the gradient is not there beside what stands for it
        param.grad = ReleasedGradient(param, member.place)


def _check(optimizer: Any, model: Any, members: list[NumberedParam]) -> None:
    """Refuse what cannot be stepped one parameter after the other."""
    name = type(optimizer).__name__
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model={model!r} is not valid: expected the module whose parameters {name} steps"
        )
    if optimizer._released is not None:
        raise RuntimeError(f"the gradients of this {name} are released already")
    for module in model.modules():
        if kind := _REDUCING.get(type(module).__name__):
            raise TypeError(
                f"model is in {kind}, which sums gradients up over processes after a parameter "
                "would have taken its step: expected a model without it, or sharded by "
                "fully_shard (FSDP2)"
            )
    own = {id(param) for param in model.parameters()}
    for _, param, group, place in members:
        if id(param) not in own:
            raise ValueError(
                f"{place}, shape {tuple(param.shape)}, is not one of the model's: expected the "
                "model whose parameters this optimizer steps"
            )
        _check_group(optimizer, group)


def _check_group(optimizer: Any, group: Group) -> None:
    """Refuse options with which no parameter can be stepped alone."""
    if group["differentiable"]:
        raise ValueError("differentiable=True does not take released gradients: set it False")
    if needs_global_norm(optimizer._method(group), group):
        raise ValueError(
            f"scope='global' of {type(optimizer).__name__} goes by the norm of all gradients, "
            "which are not there together when they are released: use scope='tensor'"
        )


# By their names, since builds of torch without distributed have none.
_REDUCING = {
    "DistributedDataParallel": "DistributedDataParallel",
    "FullyShardedDataParallel": "FullyShardedDataParallel (FSDP1)",
}
