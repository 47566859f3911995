"""Docstrings and docs/ state the defaults and ranges that the code has."""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import steppe
from steppe.optim._options import OPTION_CHECKS

OPTIMIZERS = [
    steppe.AdamCG,
    steppe.AdamCM,
    steppe.DualAdam,
    steppe.DualAdamCM,
    steppe.InvAdam,
    steppe.MIAdam,
    steppe.RMSpropCG,
    steppe.SAM,
    steppe.SGDCG,
    steppe.SGDCM,
]
SECTIONS = ["Parameters", "Raises", "Notes", "References", "Examples"]


def sections(optimizer: type) -> dict[str, str]:
    parts = re.split(r"^(\w+)\n-+\n", inspect.getdoc(optimizer) or "", flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def documented(optimizer: type) -> dict[str, str]:
    """Return what the docstring says of each argument."""
    entries = re.split(r"^(?=\S)", sections(optimizer)["Parameters"], flags=re.MULTILINE)
    found = {}
    for entry in filter(None, entries):
        names, text = entry.split("\n", 1)
        found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found


def described(optimizer: type, name: str) -> str:
    """Return the description, followed to the class that it refers to."""
    text = documented(optimizer)[name]
    if reference := re.match(r"As in :class:`(\w+)`\.", text):
        followed = described(getattr(steppe, reference[1]), name)
        own_default = text[reference.end() :]
        return re.sub(r" Default: .*", "", followed) + own_default if own_default else followed
    return text


def arguments(optimizer: type) -> dict[str, Any]:
    given = list(inspect.signature(optimizer).parameters.values())
    return {each.name: each.default for each in given[1:] if each.kind is not each.VAR_KEYWORD}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_all_sections_are_there(optimizer: type) -> None:
    assert list(sections(optimizer)) == SECTIONS


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_defaults_are_the_signatures(optimizer: type) -> None:
    first, *others = map(str, inspect.signature(optimizer).parameters.values())
    names = {re.split("[:=]", each)[0] for each in (first, *others)}
    assert documented(optimizer).keys() == names
    for name, default in arguments(optimizer).items():
        text = described(optimizer, name)
        stated = re.search(r"Default: (\([^)]*\)|\"\w+\"|[^\s,]+)", text)
        assert stated, (name, text)
        if isinstance(default, type):
            assert stated[1].rstrip(".") == default.__name__
        else:
            assert ast.literal_eval(stated[1].rstrip(".")) == default, name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ranges_are_those_that_are_checked(optimizer: type) -> None:
    # What module and base are given is asked of SAM itself.
    for name in arguments(optimizer).keys() - {"module", "base"}:
        expected, text = OPTION_CHECKS[name].expected, described(optimizer, name)
        for interval in re.findall(r"≥ \d|[\[(]\d, \d[\])]", expected):
            assert interval in text, (name, interval)
        for value in re.findall(r"'(\w+)'", expected):
            assert f'"{value}"' in text or f"``{value}``" in text, (name, value)


@pytest.mark.parametrize(
    ("page", "optimizer"), [("dualadam", steppe.DualAdam), ("critical-momenta", steppe.AdamCM)]
)
def test_pages_state_the_defaults(page: str, optimizer: type) -> None:
    text = (Path(__file__).parents[2] / "docs" / f"{page}.md").read_text(encoding="utf-8")
    table = text.split("## Settings")[1].split("\n\n")[1]
    rows = [[cell.strip() for cell in row.split("|")[1:3]] for row in table.splitlines()[2:]]
    defaults = arguments(optimizer)
    assert len(rows) >= 4
    for names, stated in rows:
        named = [defaults[name] for name in re.findall(r"`(\w+)`", names)]
        assert ast.literal_eval(f"[{stated.replace('`', '')}]") == named, names
