"""What the doctor finds."""

import io

import pytest
import torch
from rich.console import Console

import steppe
from steppe.compare.doctor import devices, doctor, engine_of, installed


def test_every_optimizer_of_steppe_is_listed_once_with_its_engine() -> None:
    console = Console(file=io.StringIO(), width=100)
    doctor(console)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    for name in steppe.__all__:
        if name == "SAM":  # goes around the others
            continue
        (row,) = [words for words in lines if words and words[0] == name]
        assert row[1] == engine_of(name.lower(), torch.device("cpu"))


def test_versions_are_those_of_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.__version__.startswith(installed("torch") or "nothing")
    assert installed("no-such-package-anywhere") is None


def test_the_cpu_is_always_there() -> None:
    assert devices()[0] == torch.device("cpu")
