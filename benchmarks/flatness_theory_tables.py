"""The tables of sections 5 and 6 of docs/flatness-plan.md, from what two scripts have measured.

``large_gradients.py`` and ``escape_network.py`` write their files; docs/dualadam.md and
docs/escape.md show them.
"""

import json
import math
from pathlib import Path
from typing import Any

import escape_network
import large_gradients
from page_blocks import head, p_value, row, signed

from steppe._shared.statistics import LEVEL, Interval


def content_of(path: Path) -> dict[str, Any] | None:
    """Read what a script has measured; None if it was not run."""
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def window_table() -> str:
    """Return, of each problem and optimizer, the learning rates that can be used."""
    columns = "decades of lr", "minus adamw", "least loss", "at lr", "inverse share"
    lines = [head("problem", "optimizer", *columns)]
    found = content_of(large_gradients.OUT)
    for each in found["readings"] if found else ():
        place = large_gradients.FACTORS.index(large_gradients.PRIMARY_FACTOR)
        share = each["inverse_share"]
        lines.append(
            row(
                each["problem"],
                each["contender"],
                _with_error(Interval(**each["windows"][place])),
                _difference(each),
                f"{each['loss']:.3g}",
                f"{each['lr']:.0e}",
                "" if share is None else f"{share:.0%}",
            )
        )
    return "\n".join(lines)


def escape_table() -> str:
    """Return predicted exponents beside those that were walked."""
    columns = "lr", "left", "mean steps", "E predicted", "E walked"
    lines = [head("walkers", "method", *columns)]
    found = content_of(escape_network.OUT)
    if found is None:
        return lines[0]
    for space, methods in escape_network.EXPONENTS.items():
        for method, exponents in methods.items():
            cells = [(E, found["cells"][f"{space}/{method}/{E:g}"]) for E in exponents]
            lines += [row(space, method, *_walked(exponent, cell)) for exponent, cell in cells]
    return "\n".join(lines)


def _walked(exponent: float, cell: dict[str, Any]) -> tuple[str, ...]:
    mean = escape_network.readings(cell)["mean"]
    walked = (math.log(steps / cell["frozen"]["prefactor"]) for steps in mean)
    middle, low, high = (f"{each:.2f}" for each in walked)
    return (
        f"{cell['lr']:.3g}",
        f"{sum(cell['left'])} of {len(cell['left'])}",
        f"{mean[0]:.2g}".replace("inf", "∞"),
        f"{exponent:g}",
        f"{middle} [{low}, {high}]".replace("inf", "∞"),
    )


def _with_error(width: Interval) -> str:
    # Of seeds that all say the same there is no interval.
    return f"{width.mean:.2f}" + ("" if width.all_equal else f" ± {width.high - width.mean:.2f}")


def _difference(reading: dict[str, Any]) -> str:
    if reading["minus_adamw"] is None:
        return ""
    seen = "" if reading["p_holm"] < LEVEL else ", not seen"
    difference = Interval(**reading["minus_adamw"])
    return f"{signed(difference)}, {p_value(reading['p_holm'])}{seen}"
