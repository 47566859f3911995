"""What the doctor finds."""

import io
import tomllib
from contextlib import redirect_stdout
from pathlib import Path

import torch

import steppe
from steppe.cli.doctor import doctor
from steppe.cli.machine import devices, engine_of, installed
from steppe.compare.choices import TRACKERS

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def rows() -> dict[str, list[str]]:
    written = io.StringIO()
    with redirect_stdout(written):
        doctor()
    lines = [line.split() for line in written.getvalue().splitlines()]
    return {words[0]: words[1:] for words in lines if words}


def test_every_optimizer_of_steppe_is_listed_with_its_engine() -> None:
    found = rows()
    for name in steppe.__all__:
        if name == "SAM":  # goes around the others
            continue
        assert found[name][0] == engine_of(name.lower(), torch.device("cpu"))


def test_every_package_that_something_needs_is_listed() -> None:
    project = tomllib.loads(PROJECT.read_text())["project"]
    extras = project["optional-dependencies"]
    named = list(project["dependencies"])
    for extra in ("compare", "language", "postgresql", "vision"):
        named += extras[extra]
    packages = {line.partition(">")[0].partition("[")[0] for line in named}
    assert {*packages, *TRACKERS, "pytorch-optimizer"} <= rows().keys()


def test_versions_are_those_of_the_packages() -> None:
    assert torch.__version__.startswith(installed("torch") or "nothing")
    assert installed("no-such-package-anywhere") is None
    assert rows()["steppe"][0] == steppe.__version__


def test_the_cpu_is_always_there() -> None:
    assert devices()[0] == torch.device("cpu")
