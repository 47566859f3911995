"""The tables of large gradients and of escape, from files whose numbers are known."""

import json
import math
from pathlib import Path

import escape_network
import flatness_theory_tables as tables
import large_gradients
import pytest


def interval_at(mean: float) -> dict[str, object]:
    return {"mean": mean, "low": mean - 0.5, "high": mean + 0.5, "all_equal": False}


def test_windows_stand_beside_adamws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_gradients, "OUT", tmp_path / "windows.json")
    assert len(tables.window_table().splitlines()) == 2
    common = {"problem": "raw targets", "loss": 7.25, "lr": 0.01}
    readings = [
        {
            **common,
            "contender": "adamw",
            "windows": [interval_at(0.75), interval_at(3.0)],
            "minus_adamw": None,
            "p_holm": None,
            "inverse_share": None,
        },
        {
            **common,
            "contender": "dualadam",
            "windows": [interval_at(0.25), interval_at(1.75)],
            "minus_adamw": interval_at(-1.25),
            "p_holm": 0.0004,
            "inverse_share": 0.993,
        },
    ]
    never = {"mean": 0.0, "low": None, "high": None, "all_equal": True}
    readings.append({**readings[-1], "contender": "invadam", "windows": [never, never]})
    large_gradients.OUT.write_text(json.dumps({"readings": readings}))
    *_, adamw, dualadam, invadam = tables.window_table().splitlines()
    assert adamw == "| raw targets | adamw | 3.00 ± 0.50 |  | 7.25 | 1e-02 |  |"
    assert dualadam == (
        "| raw targets | dualadam | 1.75 ± 0.50 | −1.25 [−1.75, −0.75], p < 0.001 | 7.25 | 1e-02 "
        "| 99% |"
    )
    assert invadam.startswith("| raw targets | invadam | 0.00 | −1.25")


def test_what_is_walked_stands_beside_what_is_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mean of e⁵ prefactors is an exponent of 5; nobody who left is one without an end."""
    monkeypatch.setattr(escape_network, "OUT", tmp_path / "escape.json")
    assert len(tables.escape_table().splitlines()) == 2
    cells = {}
    for space, methods in escape_network.EXPONENTS.items():
        for method, exponents in methods.items():
            for exponent in exponents:
                leaves = method != "adam"
                cells[f"{space}/{method}/{exponent:g}"] = {
                    "lr": 0.02,
                    "frozen": {"prefactor": 10.0},
                    "times": [10.0 * math.exp(5)] * 400,
                    "left": [leaves] * 400,
                }
    escape_network.OUT.write_text(json.dumps({"cells": cells}))
    lines = tables.escape_table().splitlines()
    assert "| line | sgd | 0.02 | 400 of 400 | 1.5e+03 | 5 | 5.00 [4.90, 5.10] |" in lines
    (stays,) = (
        line
        for line in lines
        if line.startswith("| line | adam | 0.02 | 0 of 400 |") and " 5 |" in line
    )
    # Of 400 none has left: the mean is above 400 times as long, over −log 0.025.
    assert stays.endswith("| ∞ | 5 | ∞ [9.69, ∞] |")
