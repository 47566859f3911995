"""Optimizers by the names that ``steppe compare`` has for them, as class and options."""

import inspect
from collections.abc import Mapping
from typing import Any

from steppe._shared.names import unknown_name_message
from steppe._shared.optimizer_classes import available
from steppe._shared.recipes import SAMS
from steppe.optim import SAM


def named_optimizer(
    name: str, known: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[type[Any], dict[str, Any]]:
    """Return the class that a name means, and its options.

    Parameters
    ----------
    name
        Such as "dualadam" or "adamw+sam".
    known
        Options that are given to the optimizer if it has them.
    options
        Options that are given to it in any case.

    Raises
    ------
    ValueError
        There is no such optimizer, or family of SAM's.
    """
    base, *modifiers = name.strip().lower().split("+")
    classes = available()
    if base not in classes:
        raise ValueError(unknown_name_message("optimizer", base, sorted(classes)))
    if not modifiers:
        return classes[base], {**_taken(classes[base], known), **options}
    if len(modifiers) > 1 or modifiers[0] not in SAMS:
        wrong = "+".join(modifiers)
        raise ValueError(unknown_name_message(f"modifier of {base}", wrong, sorted(SAMS)))
    kind = SAMS[modifiers[0]]
    # SAM hands the length of the run to its base.
    length = {key: known[key] for key in ("total_steps",) if key in known}
    own = _taken(classes[base], {k: v for k, v in known.items() if k != "total_steps"})
    return SAM, {"base": classes[base], **own, **length, **kind, **options}


def _taken(cls: type[Any], known: Mapping[str, Any]) -> dict[str, Any]:
    accepted = inspect.signature(cls).parameters
    return {
        name: value
        for name, value in known.items()
        # Adafactor's eps is a pair.
        if name in accepted
        and isinstance(value, tuple) == isinstance(accepted[name].default, tuple)
    }
