"""The tables: every number under its heading, none cut."""

import io
from dataclasses import replace

from rich.console import Console

from steppe._shared.statistics import Ratio
from steppe.bench.benchmark import plan_benchmark
from steppe.bench.failure import Failure
from steppe.bench.first_step import FirstStep
from steppe.bench.report import report


def printed(*outcomes, models=("tiny", "small"), **changes) -> str:
    text = io.StringIO()
    setup = plan_benchmark(models, ["dualadam"], steps=20, threads=2)
    setup = replace(setup, **changes)
    report(Console(file=text, width=100), setup, outcomes)
    return text.getvalue()


def test_a_row_of_a_model(found) -> None:
    text = printed(found())
    assert "tiny: 3 tensors, 30 parameters; copies at 21.0 GB/s" in text
    (row,) = (line.split() for line in text.splitlines() if line.startswith(" dualadam"))
    assert row == ["dualadam", "cpu", "2.00", "0.50", "0.45–0.56", "1.50", "8.0", "2.5", "%"]
    assert "on 2 threads" in text
    assert "small" not in text


def test_the_widest_rows_are_not_cut(found) -> None:
    name = "pytorch-optimizer-stableadamw"
    wide = {"seconds": 12.34567, "ratio": Ratio(123.45, 100.01, 140.44), "extra_bytes": 1200}
    calm = found(engine="eager", baseline_seconds=1e-3)
    text = printed(found(optimizer=name, engine=None, **wide), calm)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    (row,) = (line.split() for line in lines if line.startswith(f" {name}"))
    assert row == [name, "†", "–", "12346", "123", "100–140", "9259", "8.0", "1000.0", "%"]


def test_memory_that_nobody_tells_is_a_dash(found) -> None:
    (row,) = (
        line.split()
        for line in printed(found(extra_bytes=None)).splitlines()
        if line.startswith(" dualadam")
    )
    assert row[-1] == "–"


def test_what_was_disturbed_is_marked(found) -> None:
    calm, held_up = found(optimizer="invadam"), found(baseline_seconds=0.4)
    text = printed(calm, held_up)
    assert " dualadam †" in text
    assert " invadam †" not in text
    assert "† The machine was busy" in text
    assert "†" not in printed(calm)


def test_first_steps_and_failures() -> None:
    reason = "NotImplementedError: no such format"
    failures = [Failure(where, "dualadam-int8", reason) for where in ("tiny", "first step")]
    text = printed(FirstStep("dualadam", 1.5, 0.25), *failures)
    (row,) = (line.split() for line in text.splitlines() if line.startswith(" dualadam"))
    assert row == ["dualadam", "1500", "250"]
    assert text.count(reason) == 1
    assert f"Not measured: dualadam-int8 (tiny, first step): {reason}" in text


def test_host_time_is_in_microseconds_beside_no_copy(found) -> None:
    host = found(model="tiny-host", seconds=3e-5, bandwidth=None, extra_bytes=None)
    text = printed(host, models=["tiny-host"])
    assert "tiny-host: 3 tensors, 30 parameters; host time, warm caches" in text
    assert "µs per" in text
    (row,) = (line.split() for line in text.splitlines() if line.startswith(" dualadam"))
    assert row == ["dualadam", "cpu", "30.00", "0.50", "0.45–0.56", "–", "8.0", "–"]
    assert "medians of 400 steps" in " ".join(text.split())
    assert "MiB are copied" not in text
    assert "Host time" not in printed(found())


def test_packages_and_number_formats_are_listed_where_there_are_some(found) -> None:
    text = printed(found(dtype="bfloat16"), not_installed=("heavyball", "torchao"))
    assert "Not installed: heavyball, torchao." in text
    assert "in bfloat16 with dualadam." in text
    assert "bfloat16" not in printed(found())
    assert "Not installed" not in printed(found())
