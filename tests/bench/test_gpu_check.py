"""The check of a GPU, as far as a CPU takes it: each section's code, and how sections end."""

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_check
import gpu_check_graphs
import gpu_check_page
import gpu_check_parity
import gpu_check_speed
import pytest
import torch
from gpu_check_sections import SECTIONS, Section, imported

from helpers.optimizer_configs import CONFIGS, Config
from steppe._engines import dispatch
from steppe._engines.gpu import engine as gpu

CPU = torch.device("cpu")
DUAL = Config("DualAdam", {"lr": 0.01, "switch_rate": 0.01})
RATIO = {"ratio": [1.5, 1.25, 1.75]}
CONTENT = {
    "sections": {
        "machine": {
            "status": "passed",
            "seconds": 1.0,
            "found": {
                "device": "Abacus",
                "versions": {"torch": "2.13"},
                "driver": "580",
                "commit": "abc",
            },
        },
        "bandwidth": {
            "status": "missed",
            "seconds": 2.0,
            "found": {
                "numbers": 10**9,
                "copy_bytes_per_s": 4e12,
                "missed": ["too slow"],
                "steps": {
                    "dualadam": {
                        **RATIO,
                        "seconds": 0.008,
                        "bytes_per_number": 28.0,
                        "share_of_copy": 0.875,
                    }
                },
            },
        },
        "host": {
            "status": "passed",
            "seconds": 3.0,
            "found": {"tensors": {"1": {"dualadam": RATIO}, "62": {"dualadam": RATIO}}},
        },
        "parity": {
            "status": "timed out",
            "seconds": 9.0,
            "error": "much\nit | hangs",
            "found": {
                "planned": 3,
                "cases": {
                    "a": {"units": {"wide": 1.5, "narrow": 1.0}},
                    "b": {"units": {"wide": None, "narrow": 0.0}},
                },
            },
        },
        "sam": {
            "status": "passed",
            "seconds": 4.0,
            "found": {
                "directions": {
                    "random": {"difference": 2e-6, "seconds": 0.004, "copy_seconds": 0.002}
                }
            },
        },
    }
}


@pytest.fixture
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton's interpreter stand in for a GPU."""
    pytest.importorskip("triton")
    monkeypatch.setattr(gpu, "DEVICES", ("cpu",))
    monkeypatch.setattr(dispatch, "FUSED", (gpu,))


def test_limits_are_those_of_eight_minutes() -> None:
    assert sum(section.limit_s for section in SECTIONS.values()) <= 480


@pytest.mark.thorough
@pytest.mark.parametrize("name", [name for name in SECTIONS if name != "study"])
def test_sections_run(name: str) -> None:
    saved: list[dict[str, Any]] = []
    found = imported(SECTIONS[name].function)(CPU, True, saved.append)
    json.dumps(found)
    assert not found.get("missed")
    assert all(each is found for each in saved)


@pytest.mark.slow
def test_a_study_ends() -> None:
    found = imported(SECTIONS["study"].function)(CPU, True, lambda _: None)
    assert found["trials"] == {"bf16": 18}
    assert not found["missed"]


@pytest.mark.thorough
@pytest.mark.parametrize("form", gpu_check_parity.FORMATS)
@pytest.mark.usefixtures("_interpreted")
def test_kernels_are_plain_torchs(form: str) -> None:
    number = next(i for i, config in enumerate(CONFIGS) if config.name == "AdamCM")
    result = gpu_check_parity.compare(number, form, CPU)
    assert result["engine"] == "gpu"
    assert gpu_check_parity._objection(result) is None


@pytest.mark.thorough
@pytest.mark.usefixtures("_interpreted")
def test_kernels_count_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check_graphs, "SHAPES", [(300,), ()])
    for ask in (gpu_check_graphs.replays_differently, gpu_check_graphs.synchronises):
        assert ask(DUAL, "float32", CPU) is None


@pytest.mark.thorough
def test_cases_are_spread_over_processes() -> None:
    cases = [(0, "float32"), (0, "float64")]
    found = dict(gpu_check_parity._results(cases, CPU, is_spread=True))
    assert found == {case: gpu_check_parity.compare(*case, CPU) for case in cases}
    assert found[0, "float32"]["engine"] == "cpu"


@pytest.mark.parametrize("error", [1e-4, float("nan")])
def test_parity_sees_what_differs(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    step = gpu_check_parity.step_from_equal_state

    def astray(fused: Any, eager: Any, ours: Any, theirs: Any, t: int) -> None:
        step(fused, eager, ours, theirs, t)
        theirs[0].data[7] += error

    monkeypatch.setattr(gpu_check_parity, "step_from_equal_state", astray)
    for form in ("float32", "float64"):
        why = gpu_check_parity._objection(gpu_check_parity.compare(0, form, CPU))
        assert "units of wide formats, at most 16" in why
    why = gpu_check_parity._objection(gpu_check_parity.compare(0, "unheard of", CPU))
    assert "unheard of" in why


def test_codes_count_steps_from_zero() -> None:
    """Signed zero is 2 or 130; the smallest number beside it on either side one step away."""
    codes = torch.tensor([2, 130, 3, 131, 127, 255], dtype=torch.uint8)
    assert gpu_check_parity._codes(codes, False).tolist() == [0, 0, 1, -1, 125, -125]
    assert gpu_check_parity._codes(codes, True).tolist() == codes.tolist()


def test_a_replay_that_does_nothing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check_graphs, "_captured", lambda step, device: lambda: None)
    why = gpu_check_graphs.replays_differently(DUAL, "float32", CPU)
    assert why == "parameter 0 differs after 4 replays"


@pytest.mark.parametrize(
    ("engine", "ratio", "share", "missed"),
    [("gpu", 1.02, 0.85, 0), ("gpu", 1.03, 0.9, 1), ("gpu", 1.0, 0.84, 1), ("eager", 1.1, 0.8, 3)],
)
def test_speed_is_judged(engine: str, ratio: float, share: float, missed: int) -> None:
    step = {"engine": engine, "ratio": [ratio] * 3, "share_of_copy": share}
    assert len(gpu_check_speed._missed(step)) == missed


def test_bytes_are_those_that_a_step_moves() -> None:
    """As benchmarks/README.md counts them; weights of 24 bits have gradients of 2 bytes."""
    found = gpu_check_speed.bandwidth(CPU, True, lambda _: None)["steps"]
    moved = {name: step["bytes_per_number"] for name, step in found.items()}
    assert moved["dualadam"] == 28
    assert moved["adamcm-keeping"] == 32
    assert moved["adamcm-replacing"] == 44
    assert moved["dualadam-24bit"] == pytest.approx(6 + 2 + 2 * 2, rel=0.02)


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a module of sections; return the file of a run over them."""
    code = """
    import os, signal, time

    def good(device, small, save):
        return {"device": str(device), "small": small}

    def wanting(device, small, save):
        return {"missed": ["a wish"]}

    def raising(device, small, save):
        save({"cases": 1})
        raise ValueError("no such luck")

    def hanging(device, small, save):
        time.sleep(3600)

    def killed(device, small, save):
        save({"cases": 2})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    (tmp_path / "check_ends.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    names = ("raising", "hanging", "killed", "wanting", "good")
    limits = {"hanging": 1}
    sections = {name: Section("?", f"check_ends:{name}", limits.get(name, 300)) for name in names}
    monkeypatch.setattr(gpu_check, "SECTIONS", sections)
    return tmp_path / "out.json"


@pytest.mark.thorough
def test_a_section_that_does_not_end_leaves_the_others(ends: Path, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        gpu_check.main(device="cpu", small=True, out=ends)
    assert caught.value.code == 1
    sections = json.loads(ends.read_text())["sections"]
    statuses = {name: each["status"] for name, each in sections.items()}
    assert statuses == {
        "raising": "failed",
        "hanging": "timed out",
        "killed": "killed",
        "wanting": "missed",
        "good": "passed",
    }
    assert sections["raising"]["found"] == {"cases": 1}
    assert "no such luck" in sections["raising"]["error"]
    assert sections["killed"]["found"] == {"cases": 2}
    assert sections["good"]["found"] == {"device": "cpu", "small": True}
    assert "a wish" in capsys.readouterr().out


@pytest.mark.thorough
def test_named_sections_are_added_to_what_the_same_code_measured(ends: Path, capsys) -> None:
    gpu_check.main("good", device="cpu", small=True, out=ends)
    with pytest.raises(SystemExit):
        gpu_check.main("hanging", device="cpu", small=True, out=ends)
    assert list(json.loads(ends.read_text())["sections"]) == ["good", "hanging"]
    before = ends.read_bytes()
    with pytest.raises(SystemExit) as caught:
        gpu_check.main("good", device="cpu", out=ends)
    assert caught.value.code == 2
    assert "small True there, False now" in capsys.readouterr().err
    assert ends.read_bytes() == before


def test_what_cannot_be_checked_is_said(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for names, device, message in (
        (("paritty",), "cpu", "did you mean parity"),
        ((), "cuda", "device 'cuda' cannot be used here: torch sees no GPU"),
    ):
        with pytest.raises(SystemExit) as caught:
            gpu_check.main(*names, device=device, out=tmp_path / "out.json")
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_page_says_what_the_file_holds() -> None:
    page = gpu_check_page.PAGE.read_text(encoding="utf-8")
    assert gpu_check_page.rewritten(page) == page
    assert (
        gpu_check_page.rewritten(page.replace("<!-- benchmarks/gpu_check.py -->\n\n", "")) != page
    )


def test_without_a_file_nothing_was_run(tmp_path: Path, monkeypatch) -> None:
    page = "<!-- benchmarks/gpu_check.py -->\n<!-- end -->\n"
    monkeypatch.setattr(gpu_check_page, "RESULT", tmp_path / "none.json")
    assert "**Not run**" in gpu_check_page.rewritten(page)
    (tmp_path / "none.json").write_text(json.dumps(CONTENT))
    assert "Abacus" in gpu_check_page.rewritten(page)


def test_figures_stand_in_the_block() -> None:
    block = gpu_check_page.block(CONTENT)
    for line in (
        "Abacus, torch 2.13, driver 580; commit abc.",
        f"| machine | {SECTIONS['machine'].question} | passed |",
        f"| bandwidth | {SECTIONS['bandwidth'].question} | **missed; too slow** |",
        f"| parity | {SECTIONS['parity'].question} | **timed out; 2 of 3 cases; at most 1.5 "
        r"units in wide formats, 1 in narrow ones; it \| hangs** |",
        f"| graphs | {SECTIONS['graphs'].question} | **not run** |",
        "A step over 1,000 M parameters; the device copies 4,000 GB/s, read and written:",
        "| dualadam | 8.00 | 1.500 (1.250–1.750) | 28.0 | 88 % |",
        "| tensors | 1 | 62 |",
        "| dualadam | 1.500 (1.250–1.750) | 1.500 (1.250–1.750) |",
        "| random | 4.00 | 2.0 | 2e-06 |",
    ):
        assert line in block.splitlines()
