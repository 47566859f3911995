"""The options of parameter groups in mid-run: checked once they have changed, and made plain.

Who sets an option to what no step takes is told by the next step, and not when the checkpoint is to
be loaded.
"""

from collections.abc import Callable, Iterable, Mapping
from operator import is_, itemgetter
from typing import Any, NamedTuple

from torch import Tensor

from steppe._engines import Group
from steppe.optim._options import check_options, is_live, to_plain

#: Options that may contradict another.
_CONTRADICTING = frozenset({"eps", "scale_free", "differentiable", "state_dtype", "param_error"})
#: Options that a plan goes by, besides those that select the method.
_PLANNED = (
    "capacity", "scope", "state_dtype", "param_error", "fused", "capturable", "differentiable",
)  # fmt: skip


class GroupOptions(NamedTuple):
    """The options of a group as they were checked.

    Attributes
    ----------
    values
        In the order of the optimizer's options.
    planned
        What a plan goes by: it changes when the plan is to be made anew.
    """

    values: tuple[Any, ...]
    planned: tuple[Any, ...]


def settled_options(
    groups: Iterable[Group],
    defaults: Mapping[str, Any],
    seen: Mapping[int, GroupOptions],
    method_of: Callable[[Group], Any],
) -> dict[int, GroupOptions]:
    """Check the options that have changed, and make them plain.

    Parameters
    ----------
    groups
        The optimizer's.
    defaults
        Its options; a group that lacks one, as from an older pickle, gets its default.
    seen
        What this returned last.
    method_of
        Returns the method that a group selects.

    Returns
    -------
    dict
        The options of each group, by its identity.

    Raises
    ------
    ValueError
        An option is out of its range; the group is as it was.
    """
    names = tuple(defaults)
    values_of = itemgetter(*names)
    found = {}
    for number, group in enumerate(groups):
        try:
            values = values_of(group)
        except KeyError:
            for name, default in defaults.items():
                group.setdefault(name, default)
            values = values_of(group)
        last = seen.get(id(group))
        if last is not None and len(last.values) != len(names):
            last = None  # A wrapper, such as SAM, has added options of its own.
        # By identity: with a group for each tensor this is done thousands of times in a step.
        if last is None or not all(map(is_, values, last.values)):
            before = values if last is None else last.values
            changed = [n for n, x, y in zip(names, values, before, strict=True) if x is not y]
            _settle(group, names if last is None else changed, f" in group {number}")
            if last is not None and all(map(is_live, changed)):
                last = last._replace(values=values_of(group))
            else:
                planned = *map(group.get, _PLANNED), method_of(group)
                last = GroupOptions(values_of(group), planned)
        found[id(group)] = last
    return found


def _settle(group: Group, changed: Iterable[str], where: str) -> None:
    plain = {name: to_plain(group[name], name) for name in changed}
    options = plain
    if not _CONTRADICTING.isdisjoint(plain):
        options = {name: group[name] for name in _CONTRADICTING & group.keys()} | plain
    check_options(options, in_a_run=True, where=where)
    _check_has_value(group, plain, where)
    group.update(plain)


def _check_has_value(group: Group, options: Mapping[str, Any], where: str) -> None:
    """Refuse a tensor on the meta device where the parameters have values."""
    for name, value in options.items():
        each = value if isinstance(value, tuple) else (value,)
        is_meta = any(isinstance(x, Tensor) and x.is_meta for x in each)
        if is_meta and not all(param.is_meta for param in group["params"]):
            raise ValueError(
                f"{name}={value!r} is not valid{where}: expected a number, or a tensor that has "
                "one and is not on the meta device"
            )
