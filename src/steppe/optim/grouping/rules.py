"""A user's rules: what they match, and which options they give."""

import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch.nn import Module

from steppe.optim._options import OPTION_CHECKS, check_options, to_plain
from steppe.optim.grouping.named import NamedParam

Selector = str | re.Pattern[str] | type[Module]
Options = Mapping[str, Any]

# What a group is made of, and not an option of it.
_RESERVED = ("params", "param_names")
# What SAM, schedulers of torch and timm, and torch's Muon and its kin find in groups.
_OF_OTHERS = (
    *("sam_rho", "lr_scale", "name", "initial_lr", "swa_lr", "use_muon"),
    *(f"{bound}_{option}" for bound in ("min", "max", "base") for option in ("lr", "momentum")),
)
# Of these every optimizer takes the same values. Others have options of the same name that take
# others: Adan three betas, Adafactor two eps.
_CHECKED = ("lr", "weight_decay")
_NAMES_SHOWN = 5


class Rule(NamedTuple):
    """Which parameters get which options."""

    selector: re.Pattern[str] | type[Module]
    options: dict[str, Any]

    def matches(self, param: NamedParam) -> bool:
        """Whether one of its names holds the pattern, or one of its owners is of the type."""
        if isinstance(self.selector, type):
            return any(isinstance(owner, self.selector) for owner in param.owners)
        return any(map(self.selector.search, param.names))

    def __str__(self) -> str:
        if isinstance(self.selector, type):
            return self.selector.__name__
        return repr(self.selector.pattern)


def checked_rules(rules: Mapping[Selector, Options] | None) -> list[Rule]:
    """Return rules in their order, after their types and values were checked.

    Raises
    ------
    TypeError
        ``rules``, one of the selectors or one of the options is of a wrong type.
    ValueError
        A regular expression is none, or an option is out of its range.
    """
    if rules is None:
        return []
    if not isinstance(rules, Mapping):
        raise TypeError(
            "rules must map regular expressions or module types to options, as "
            f'{{r"head": {{"lr": 0.01}}}}; got a {type(rules).__name__}'
        )
    return [_checked(selector, options) for selector, options in rules.items()]


def check_all_match(rules: Sequence[Rule], params: Sequence[NamedParam]) -> None:
    """Refuse rules that match no parameter, frozen ones included.

    Raises
    ------
    ValueError
        The message names the rule, and some parameters.
    """
    for rule in rules:
        if any(map(rule.matches, params)):
            continue
        names = [param.name for param in params]
        shown = ", ".join(names[:_NAMES_SHOWN])
        rest = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        how = (
            "a module type matches the parameters that its modules hold themselves, not those of "
            "modules inside"
            if isinstance(rule.selector, type)
            else "a regular expression is searched in the full name"
        )
        raise ValueError(f"rule {rule} matches no parameter: {how}. There are {shown}{rest}")


def _checked(selector: Any, options: Any) -> Rule:
    found = _checked_selector(selector)
    where = Rule(found, {})
    if not isinstance(options, Mapping):
        raise TypeError(
            f"rule {where} must give options by name, as {{'lr': 0.01}}; got {options!r}"
        )
    for name in options:
        if not isinstance(name, str):
            raise TypeError(f"rule {where} has an option {name!r}: expected the name of an option")
        if name in _RESERVED:
            raise ValueError(
                f"rule {where} has an option {name!r}, which a group has by itself: expected an "
                "optimizer's option, such as lr or weight_decay"
            )
        if name not in _known_options():
            warnings.warn(
                f"rule {where} has an option {name!r}, which no optimizer of torch or steppe has: "
                "expected one such as lr or weight_decay; it is in the group all the same",
                # The line that calls param_groups.
                stacklevel=5,
            )
    plain = {name: to_plain(value, name) for name, value in options.items()}
    check_options(
        {name: plain[name] for name in _CHECKED if name in plain}, where=f" in rule {where}"
    )
    return Rule(found, plain)


@cache
def _known_options() -> set[str]:
    """Return the options of all optimizers, and what schedulers and SAM find in groups."""
    classes = [each for each in vars(torch.optim).values() if isinstance(each, type)]
    torchs = (name for cls in classes for name in signature(cls).parameters)
    return {*OPTION_CHECKS, *torchs, *_OF_OTHERS}


def _checked_selector(selector: Any) -> re.Pattern[str] | type[Module]:
    if isinstance(selector, str):
        try:
            return re.compile(selector)
        except re.error as error:
            raise ValueError(
                f"rule {selector!r} is not a regular expression: {error}; "
                "re.escape(name) makes one of a name"
            ) from None
    if isinstance(selector, re.Pattern) and isinstance(selector.pattern, str):
        return selector
    if isinstance(selector, type) and issubclass(selector, Module):
        return selector
    raise TypeError(
        f"a rule must begin with a regular expression or a module type, got {selector!r}"
    )
