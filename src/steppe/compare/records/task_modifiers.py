"""The modifiers of a task's name, such as ``digits+noise40+few250``, apart from what they do.

They are read without importing torch, as the other names are. What each does is in
:mod:`steppe.compare.tasks.modifiers`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from steppe._shared.names import unknown_name_message

_LARGEST = 10**9
#: Names have room for nine digits.
LARGEST_SEED = 10**9 - 1
_PATTERN = re.compile(r"[a-z]+([0-9]+(?:\.[0-9]+)?)(?:-seed([0-9]+))?")


class ModifierKind(NamedTuple):
    """What a modifier's name may say.

    Attributes
    ----------
    example : str
        A name, for help and errors.
    takes : str
        The amounts that it may have, for errors.
    holds : callable
        Whether an amount is one of them.
    option : str, default ""
        The study's option that sets the same, which cannot be given beside it.
    seeded : bool, default False
        Whether it draws at random, so that a seed may follow.
    default : float, optional
        The amount of a name without one.
    """

    example: str
    takes: str
    holds: Callable[[float], bool]
    option: str = ""
    seeded: bool = False
    default: float | None = None


def _whole(example: str, least: int, option: str) -> ModifierKind:
    def holds(amount: float) -> bool:
        return least <= amount <= _LARGEST and amount == int(amount)

    return ModifierKind(example, f"a whole number from {least} to {_LARGEST}", holds, option)


#: All modifiers, in the order in which they are applied and named, however a user writes them:
#: noise comes after the choice of samples, so that the choice does not depend on it.
MODIFIERS: Mapping[str, ModifierKind] = {
    "few": _whole("few250", 2, "samples"),
    "noise": ModifierKind(
        "noise40",
        "a percentage above 0 and below 100",
        lambda amount: 0 < amount < 100,
        seeded=True,
    ),
    "shift": ModifierKind(
        "shift3",
        "a severity, a whole number from 1 to 5",
        lambda amount: amount in range(1, 6),
        default=3,
    ),
    "batch": _whole("batch1024", 1, "batch_size"),
    "long": _whole("long4", 2, "epochs"),
}


@dataclass(frozen=True)
class Modifier:
    """One modifier of a task.

    Attributes
    ----------
    kind : str
        One of :data:`MODIFIERS`.
    amount : float
        How much of it: a number, a factor, or a percentage. Fifteen digits of it count.
    seed : int, default 0
        Of what it draws at random.

    Raises
    ------
    ValueError
        The amount is out of the kind's range.

    Examples
    --------
    >>> str(Modifier("noise", 40)), str(Modifier("noise", 2.5, seed=3))
    ('noise40', 'noise2.5-seed3')
    """

    kind: str
    amount: float
    seed: int = 0

    def __post_init__(self) -> None:
        # 100 · 0.07 is not 7, and must be the same modifier.
        object.__setattr__(self, "amount", float(f"{self.amount:.15g}"))
        if not MODIFIERS[self.kind].holds(self.amount):
            raise _refusal(self.kind, str(self))

    def __str__(self) -> str:
        seed = f"-seed{self.seed}" if self.seed else ""
        # Without an exponent, which no name is read with.
        return f"{self.kind}{Decimal(f'{self.amount:.15g}'):f}{seed}"


def parse_task(name: str) -> tuple[str, tuple[Modifier, ...]]:
    """Split a task's name into that of the task itself and its modifiers, in their own order.

    Parameters
    ----------
    name : str
        As users write it.

    Raises
    ------
    ValueError
        There is no such modifier, and the message lists those there are; one is out of its range,
        or given twice.

    Examples
    --------
    >>> base, modifiers = parse_task("work/mytask.py:task+noise40+few250")
    >>> base, [str(each) for each in modifiers]
    ('work/mytask.py:task', ['few250', 'noise40'])
    """
    base, texts = _split(name)
    return base, ordered(map(_parsed, texts))


def base_of(name: str) -> str:
    """Return a task's name without modifiers.

    Examples
    --------
    >>> base_of("split-mnist+noise40")
    'split-mnist'
    """
    return _split(name)[0]


def with_modifiers(base: str, modifiers: Iterable[Modifier]) -> str:
    """Return a task's name followed by its modifiers."""
    return "+".join((base, *map(str, modifiers)))


def spelled(name: str) -> str:
    """Return a task's name in the one spelling that stands for the same task.

    Raises
    ------
    ValueError
        As of :func:`parse_task`.

    Examples
    --------
    >>> spelled("digits+noise40.0+few250")
    'digits+few250+noise40'
    """
    return with_modifiers(*parse_task(name))


def ordered(modifiers: Iterable[Modifier]) -> tuple[Modifier, ...]:
    """Return modifiers in the order in which they are applied.

    Raises
    ------
    ValueError
        Two are of one kind.
    """
    found: dict[str, Modifier] = {}
    for each in modifiers:
        if (other := found.setdefault(each.kind, each)) is not each:
            raise ValueError(
                f"{each.kind} must be given once, got +{other} and +{each}: leave one of them out"
            )
    return tuple(found[kind] for kind in MODIFIERS if kind in found)


def _split(name: str) -> tuple[str, list[str]]:
    # A directory may have a + in its name.
    path, colon, attribute = name.rpartition(":")
    base, *texts = attribute.split("+")
    return f"{path}{colon}{base}", texts


def _parsed(text: str) -> Modifier:
    kind = text.partition("-")[0].rstrip("0123456789.")
    if kind not in MODIFIERS:
        examples = [each.example for each in MODIFIERS.values()]
        raise ValueError(unknown_name_message("task modifier", text, examples))
    usual = MODIFIERS[kind].default
    if text == kind and usual is not None:
        return Modifier(kind, usual)
    found = _PATTERN.fullmatch(text)
    if found is None or (found[2] and not MODIFIERS[kind].seeded):
        raise _refusal(kind, text)
    # Python refuses to read numbers of thousands of digits.
    digits = (found[2] or "").lstrip("0")
    if len(digits) > len(str(LARGEST_SEED)):
        raise ValueError(f"the seed of {kind} must be at most {LARGEST_SEED}, got +{text}")
    return Modifier(kind, float(found[1]), int(digits or 0))


def _refusal(kind: str, text: str) -> ValueError:
    known = MODIFIERS[kind]
    seed = ", then -seed1 for another seed" if known.seeded else ""
    return ValueError(f"{kind} must be {known.takes}, as +{known.example}{seed}, got +{text}")
