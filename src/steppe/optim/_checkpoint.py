"""Checkpoints of the optimizers: checked before they are loaded, restored bit for bit.

:class:`CheckpointedOptimizer` has ``state_dict`` and ``load_state_dict`` for all of them.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from steppe._engines import Group, Method, pack_scales, unpack_scales
from steppe.optim._options import check_options
from steppe.optim._state import copied_to_device, first_mismatch, state_layout


class CheckpointedOptimizer(Optimizer):
    """An optimizer whose checkpoints are checked as a whole and restored exactly."""

    def _method(self, group: Group) -> Method:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the options of all groups and the state of all parameters.

        Sharded parameters have sharded state, which :mod:`torch.distributed.checkpoint` saves, and
        loads in any number of processes. docs/scaling.md says what 8-bit state needs for that.

        Returns
        -------
        dict
            ``param_groups`` and ``state`` as in ``torch.optim``; parameters are numbered in the
            order of the groups.
        """
        # First among the hooks, so that a user's hooks see what is saved.
        hook = self.register_state_dict_post_hook(_with_checkpoint_scales, prepend=True)
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
            _check_fits(self, incoming)
            accepted.update(incoming)

        def restore(_: Optimizer) -> None:
            _restore(self, accepted)

        # A user's hooks may change the checkpoint before it is loaded, and may read the state after
        # that: inspect after the former, restore before the latter.
        before = self.register_load_state_dict_pre_hook(inspect)
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()


def _check_fits(optimizer: CheckpointedOptimizer, state_dict: dict[str, Any]) -> None:
    """Refuse a checkpoint that does not fit.

    Raises
    ------
    ValueError
        It names the first difference: keys, groups, options, or the state of a parameter.
    """
    refuse = f"checkpoint does not fit this {type(optimizer).__name__}: "
    for key in ("state", "param_groups"):
        if key not in state_dict:
            raise ValueError(f"{refuse}{key!r} is missing")
    _check_groups_fit(optimizer, state_dict["param_groups"], refuse)
    known = {index for group in state_dict["param_groups"] for index in group["params"]}
    if unknown := [key for key in state_dict["state"] if key not in known]:
        raise ValueError(f"{refuse}state of {unknown[0]!r} belongs to no parameter of its groups")
    for index, param, group, state in _params_with_saved_state(optimizer, state_dict):
        wanted = state_layout(optimizer._method(group), group, param, state)
        if difference := first_mismatch(state, wanted, param):
            raise ValueError(
                f"{refuse}state of parameter {index}, shape {tuple(param.shape)}: {difference}"
            )


def _check_groups_fit(optimizer: Optimizer, saved: list[Group], refuse: str) -> None:
    own = optimizer.param_groups
    if len(saved) != len(own):
        raise ValueError(f"{refuse}it has {len(saved)} parameter groups, expected {len(own)}")
    for index, (theirs, ours) in enumerate(zip(saved, own, strict=True)):
        if "params" not in theirs:
            raise ValueError(f"{refuse}'params' of group {index} is missing")
        if len(theirs["params"]) != len(ours["params"]):
            raise ValueError(
                f"{refuse}group {index} has {len(theirs['params'])} parameters, "
                f"expected {len(ours['params'])}"
            )
        if missing := optimizer.defaults.keys() - theirs.keys():
            raise ValueError(f"{refuse}option {min(missing)!r} of group {index} is missing")
        check_options({name: theirs[name] for name in optimizer.defaults})


def _restore(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Give the parameters copies of the saved tensors, in the formats they were saved in."""
    for _, param, group, state in _params_with_saved_state(optimizer, state_dict):
        restored = {
            name: copied_to_device(name, x, param, group) if isinstance(x, Tensor) else x
            for name, x in state.items()
        }
        unpack_scales(restored, param)
        optimizer.state[param] = restored


def _with_checkpoint_scales(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint whose scales do not depend on how the parameters are sharded."""
    states = dict(state_dict["state"])
    for index, param, _, state in _params_with_saved_state(optimizer, state_dict):
        states[index] = pack_scales(state, param)
    return {**state_dict, "state": states}


def _params_with_saved_state(
    optimizer: Optimizer, state_dict: dict[str, Any]
) -> Iterator[tuple[int, Tensor, Group, dict[str, Any]]]:
    """Yield index in the checkpoint, parameter, saved group and saved state where there is one."""
    for theirs, ours in zip(state_dict["param_groups"], optimizer.param_groups, strict=True):
        for index, param in zip(theirs["params"], ours["params"], strict=True):
            if state := state_dict["state"].get(index):
                yield index, param, theirs, state
