"""Checkpoints of the optimizers: checked before they are loaded, restored bit for bit.

:class:`CheckpointedOptimizer` has ``state_dict`` and ``load_state_dict`` for all of them.
"""

import copy
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from steppe._engines import KEYS, PARAM_ERROR, Group, Method, pack_scales, unpack_scales
from steppe.optim._kept_means import KeptMeans, mean_fits, without_mean
from steppe.optim._options import check_options, class_defaults, to_plain
from steppe.optim._state import (
    add_missing_state,
    as_step_count,
    copied_to_device,
    state_layout,
)
from steppe.optim._state_checks import first_mismatch
from steppe.optim._warm_start import (
    check_method,
    is_torchs,
    warm_started_group,
    warm_started_state,
)

_KINDS: dict[str, Any] = {"a dictionary": Mapping, "a list": (list, tuple)}


class CheckpointedOptimizer(Optimizer):
    """An optimizer whose checkpoints are checked as a whole and restored exactly."""

    # State that an option adds when it is switched on: a checkpoint made before may lack it.
    _optional_state: tuple[str, ...] = (
        "max_exp_avg_sq",
        "grad_avg",
        "exp_avg_sq_mean",
        PARAM_ERROR,
    )

    _class_defaults: Mapping[str, Any] = MappingProxyType({})

    # What is known of the means in the state; those in a copy or a checkpoint are right.
    _kept_means = KeptMeans()

    def __init_subclass__(cls, **options: Any) -> None:
        """Note the defaults of the class's constructor."""
        super().__init_subclass__(**options)
        cls._class_defaults = class_defaults(cls)

    def _method(self, group: Group) -> Method:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles need."""
        state: dict[str, Any] = super().__getstate__()
        # What is live stays as it is: another thread may be stepping.
        if stale := self._kept_means.stale(self.state):
            state["state"] = copy.copy(self.state)
            state["state"].update({param: without_mean(self.state[param]) for param in stale})
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over groups; an option that they lack, because it is newer, has its default."""
        super().__setstate__(state)
        for options in (self.defaults, *self.param_groups):
            for name, value in self._class_defaults.items():
                options.setdefault(name, value)
        self._note_means()

    def _note_means(self) -> None:
        params = (param for group in self.param_groups for param in group["params"])
        self._kept_means = KeptMeans(params, self.state)

    def state_dict(self) -> dict[str, Any]:
        """Return the options of all groups and the state of all parameters.

        The tensors are not copies: later steps change them, so copy or save them between steps. If
        another thread steps meanwhile, a copy may mix tensors from before and after that step. A
        first step, and one after state was exchanged, also moves step counts in memory: a copy that
        is made meanwhile may raise an error ("setStorage"), or have another parameter's step count.

        Sharded parameters have sharded state, which :mod:`torch.distributed.checkpoint` saves, and
        loads in any number of processes. docs/scaling.md says what 8-bit state needs for that.

        Returns
        -------
        dict
            ``param_groups`` and ``state`` as in ``torch.optim``; parameters are numbered in the
            order of the groups. Entries of ``state`` under other keys than parameters are saved as
            they are, unless the key is the number of a parameter, or a tensor that no group has
            any more.
        """
        # First among the hooks, so that a user's hooks see what is saved.
        hook = self.register_state_dict_post_hook(_as_saved, prepend=True)
        try:
            with _only_what_is_saved(self):
                return super().state_dict()
        finally:
            hook.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint and go on exactly where it was saved.

        Every tensor keeps the number format it was saved in: torch.optim would round the state of
        half-precision parameters, step counts and keys included, to the parameter's own format.

        Options that a checkpoint lacks, because it is older than they are, take the class's
        default. Checkpoints of torch's Adam and AdamW warm-start the optimizers whose state begins
        with Adam's moments, those of SGD warm-start SGDCM and SGDCG, those of RMSprop RMSpropCG:
        with an empty buffer, with the checkpoint's options where torch has them, and this
        optimizer's own where it has not.

        A mean that ``scale_free`` has kept, and that is not of the second moment beside it, because
        that was edited, is computed anew by the next step. Of sharded parameters all processes of a
        mesh must load together.

        Raises
        ------
        ValueError
            The checkpoint does not fit; the message names the difference. Nothing has changed.
        """
        accepted: dict[str, Any] = {}

        def inspect(_: Optimizer, incoming: dict[str, Any]) -> dict[str, Any]:
            accepted.update(_fitted(self, incoming))
            # What belongs to parameters is restored below, in the formats it was saved in.
            theirs = {index for group in accepted["param_groups"] for index in group["params"]}
            others = {k: v for k, v in accepted["state"].items() if k not in theirs}
            return {**accepted, "state": others}

        def restore(_: Optimizer) -> None:
            _restore(self, accepted)

        # A user's hooks may change the checkpoint before it is loaded, and may read the state after
        # that: inspect after the former, restore before the latter.
        before = self.register_load_state_dict_pre_hook(inspect)
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        found = self.state, self.param_groups, self._kept_means
        try:
            super().load_state_dict(state_dict)
        except BaseException:
            # Memory has run out, or Ctrl-C: torch has put others in their place.
            self.state, self.param_groups, self._kept_means = found
            raise
        finally:
            before.remove()
            after.remove()
        self._note_means()


@contextmanager
def _only_what_is_saved(optimizer: Optimizer) -> Iterator[None]:
    """Put the state aside of parameters that were replaced in their group, or whose group is gone.

    torch.optim raises a KeyError for them. Entries under the number of a parameter are put aside
    too: torch.optim would save one of both.
    """
    everything = optimizer.state
    listed = {id(param) for group in optimizer.param_groups for param in group["params"]}
    numbers = range(sum(len(group["params"]) for group in optimizer.param_groups))

    def is_saved(key: Any) -> bool:
        return id(key) in listed if isinstance(key, Tensor) else key not in numbers

    if all(map(is_saved, everything)):
        yield
        return
    optimizer.state = defaultdict(dict)
    optimizer.state.update((key, value) for key, value in everything.items() if is_saved(key))
    try:
        yield
    finally:
        optimizer.state = everything


def _fitted(optimizer: CheckpointedOptimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint as this optimizer would have saved it; refuse one that does not fit.

    Raises
    ------
    ValueError
        It names the first difference: keys, groups, options, or the state of a parameter.
    """
    check_kinds(state_dict, _refusal(optimizer))
    _check_groups_match(optimizer, state_dict["param_groups"])
    states = dict(state_dict["state"])
    groups = [
        _fitted_group(optimizer, number, group, states)
        for number, group in enumerate(state_dict["param_groups"])
    ]
    for number, group in enumerate(groups):
        is_theirs = is_torchs(state_dict["param_groups"][number])
        own = optimizer.param_groups[number]["params"]
        for index, param in zip(group["params"], own, strict=True):
            if index in states:
                states[index] = _fitted_state(
                    optimizer, index, param, group, states[index], is_theirs=is_theirs
                )
    _check_others(optimizer, groups, states)
    return {**state_dict, "param_groups": groups, "state": states}


def _refusal(optimizer: Optimizer) -> str:
    return f"checkpoint does not fit this {type(optimizer).__name__}: "


def check_kinds(state_dict: dict[str, Any], refuse: str) -> None:
    """Refuse what is no checkpoint of an optimizer; ``refuse`` begins the message.

    Raises
    ------
    ValueError
        Something is missing, or is neither a dictionary nor a list where one is expected.
    """
    _check_kind(state_dict, "state", "a dictionary", refuse)
    _check_kind(state_dict, "param_groups", "a list", refuse)
    for index, group in enumerate(state_dict["param_groups"]):
        if not isinstance(group, dict):
            kind = type(group).__name__
            raise ValueError(f"{refuse}group {index} is {kind}, expected a dictionary")
        _check_kind(group, "params", "a list", refuse, f" of group {index}")


def _check_kind(found: Group, key: str, expected: str, refuse: str, where: str = "") -> None:
    if key not in found:
        raise ValueError(f"{refuse}{key!r}{where} is missing")
    if not isinstance(found[key], _KINDS[expected]):
        kind = type(found[key]).__name__
        raise ValueError(f"{refuse}{key!r}{where} is {kind}, expected {expected}")


def _check_groups_match(optimizer: Optimizer, saved: list[Group]) -> None:
    refuse, own = _refusal(optimizer), optimizer.param_groups
    if len(saved) != len(own):
        raise ValueError(f"{refuse}it has {len(saved)} parameter groups, expected {len(own)}")
    for index, (theirs, ours) in enumerate(zip(saved, own, strict=True)):
        if len(theirs["params"]) != len(ours["params"]):
            raise ValueError(
                f"{refuse}group {index} has {len(theirs['params'])} parameters, "
                f"expected {len(ours['params'])}"
            )
        _check_order(theirs.get("param_names"), ours.get("param_names"), f"{refuse}group {index}")


def _check_order(saved: Any, own: Any, group: str) -> None:
    """Refuse the same named parameters in another order: each would get another's state.

    Other names pass, as in torch.optim: a model may have been wrapped, or its layers renamed.
    """
    if not (saved and own) or saved == own or Counter(saved) != Counter(own):
        return
    theirs, ours = next((x, y) for x, y in zip(saved, own, strict=True) if x != y)
    raise ValueError(
        f"{group} has the same parameters in another order: {theirs!r} in the place of {ours!r}; "
        "give the optimizer its parameters in the order of the checkpoint"
    )


def _fitted_group(
    optimizer: CheckpointedOptimizer, number: int, saved: Group, states: dict[Any, Any]
) -> Group:
    """Return a group of a checkpoint with every option of this optimizer."""
    own, names = optimizer.param_groups[number], optimizer.defaults.keys()
    where = f"group {number}"
    try:
        if is_torchs(saved):
            saved = warm_started_group(saved, own, names, where)
        else:
            theirs = [states.get(index) for index in saved["params"]]
            check_method(saved, [x for x in theirs if isinstance(x, dict)], names, where)
    except ValueError as error:
        raise ValueError(f"{_refusal(optimizer)}{error}") from None
    group = {**optimizer.defaults, **optimizer._class_defaults, **saved}
    group |= {name: to_plain(group[name], name) for name in names}
    check_options({name: group[name] for name in names}, in_a_run=True, where=f" in {where}")
    return group


def _fitted_state(
    optimizer: CheckpointedOptimizer,
    index: int,
    param: Tensor,
    group: Group,
    state: Any,
    *,
    is_theirs: bool,
) -> dict[str, Any]:
    """Return a parameter's state in a checkpoint, if it fits."""
    refuse = _refusal(optimizer)
    if not isinstance(state, dict):
        kind = type(state).__name__
        raise ValueError(f"{refuse}state of parameter {index} is {kind}, expected a dictionary")
    if not state:
        return {}
    if is_lazy(param):
        raise ValueError(
            f"{refuse}parameter {index}, of a lazy module, has no shape yet: load the checkpoint "
            "after the model's first forward pass"
        )
    method = optimizer._method(group)
    # Torch's state is in full, whatever this optimizer's is to be.
    saved_in = {**group, "state_dtype": None, "param_error": None} if is_theirs else group
    wanted = state_layout(method, saved_in, param, state)
    if is_theirs:
        state = warm_started_state(state, optimizer.defaults, wanted)
    if difference := first_mismatch(state, wanted, param, optimizer._optional_state):
        raise ValueError(
            f"{refuse}state of parameter {index}, shape {tuple(param.shape)}: {difference.text}"
        )
    fitted = dict(state)
    if isinstance(fitted.get("step"), Tensor):
        # It gets its number format in its place, and may be that of an optimizer that goes on.
        fitted["step"] = fitted["step"].clone()
    if is_theirs and fitted:
        add_missing_state(fitted, param, method, group)
    return fitted


def _check_others(
    optimizer: CheckpointedOptimizer, groups: list[Group], states: dict[Any, Any]
) -> None:
    """Refuse state of parameters that no group has; a user's own entries pass, as in torch.optim.

    Raises
    ------
    ValueError
        An entry has the names of a parameter's state, and its key is another parameter's number,
        or all keys are of another kind, such as the parameters' names.
    """
    known = {index for group in groups for index in group["params"]}
    ours = {KEYS, *(name for group in groups for name in optimizer._method(group).state)}
    has_none = known.isdisjoint(states)
    for key, value in states.items():
        is_number = isinstance(key, int) or (isinstance(key, str) and key.isdigit())
        if key in known or not (is_number or has_none):
            continue
        if isinstance(value, dict) and ours & value.keys():
            raise ValueError(
                f"{_refusal(optimizer)}state of {key!r} belongs to no parameter of its groups"
            )


def _restore(optimizer: CheckpointedOptimizer, state_dict: dict[str, Any]) -> None:
    """Give the parameters copies of the saved tensors, in the formats they were saved in."""
    for _, param, group, state in _params_with_saved_state(optimizer, state_dict):
        restored = {
            name: copied_to_device(name, as_step_count(x) if name == "step" else x, param, group)
            if isinstance(x, Tensor) or name == "step"
            else copy.deepcopy(x)
            for name, x in state.items()
        }
        unpack_scales(restored, param)
        fits = mean_fits(restored, param, group)
        optimizer.state[param] = restored if fits else without_mean(restored)


def _as_saved(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint that does not depend on how parameters are sharded, without NumPy.

    ``torch.load`` with ``weights_only`` refuses NumPy's numbers, which schedules leave in groups.
    """
    states = dict(state_dict["state"])
    stale = {*map(id, optimizer._kept_means.stale(optimizer.state))}
    for index, param, _, state in _params_with_saved_state(optimizer, state_dict):
        states[index] = pack_scales(without_mean(state) if id(param) in stale else state, param)
    groups = [
        {name: _plain_entry(optimizer, name, x) for name, x in group.items()}
        for group in state_dict["param_groups"]
    ]
    return {**state_dict, "param_groups": groups, "state": states}


def _plain_entry(optimizer: Optimizer, name: str, value: Any) -> Any:
    """Return an option in plain form; of a user's own entries only NumPy's numbers change."""
    is_option = name in optimizer.defaults or isinstance(value, np.generic)
    return to_plain(value, name) if is_option else value


def _params_with_saved_state(
    optimizer: Optimizer, state_dict: dict[str, Any]
) -> Iterator[tuple[int, Tensor, Group, dict[str, Any]]]:
    """Yield index in the checkpoint, parameter, saved group and saved state where there is one."""
    for theirs, ours in zip(state_dict["param_groups"], optimizer.param_groups, strict=True):
        for index, param in zip(theirs["params"], ours["params"], strict=True):
            if state := state_dict["state"].get(index):
                yield index, param, theirs, state
