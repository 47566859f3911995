"""What docs/testbed.md lists is what there is."""

import inspect
from pathlib import Path

import pytest

from figures.catalogue import NAMES, find_figure
from steppe.functions import FUNCTIONS, Function, find_function

PAGE = (Path(__file__).parents[1] / "docs" / "testbed.md").read_text()


def written(values: tuple[float, ...]) -> str:
    numbers = ", ".join(f"{value:.4g}" for value in values).replace("-", "−")
    return f"({numbers})" if len(values) > 1 else numbers


def minima(function: Function, is_global: bool) -> str:
    """Write places by value, such as ``3 at (0, −1)``."""
    places: dict[float, list[str]] = {}
    for minimum in function.minima:
        if minimum.is_global == is_global:
            places.setdefault(minimum.value, []).append(written(minimum.point))
    return "; ".join(
        f"{written((value,))} at {' and '.join(points)}" for value, points in places.items()
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_listed_with_its_minima_and_parameters(name: str) -> None:
    function = find_function(name)
    domain = " × ".join(f"[{written((low,))}, {written((high,))}]" for low, high in function.bounds)
    taken = inspect.signature(FUNCTIONS[name]).parameters.values()
    parameters = ", ".join(f"`{each.name}={each.default:g}`" for each in taken)
    cells = [f"`{name}`", function.formula, domain, minima(function, True)]
    cells += [minima(function, False), parameters]
    assert f"| {' | '.join(cell or '–' for cell in cells)} |" in PAGE


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_listed_with_its_title(name: str) -> None:
    assert f"| `{name}` | {find_figure(name).title} |" in PAGE


def test_nothing_else_is_listed() -> None:
    listed = [line.split("`")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    assert sorted(listed) == sorted([*FUNCTIONS, *NAMES])
