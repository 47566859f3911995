"""The command ``steppe bench``: it checks its arguments; :mod:`steppe.bench.show` measures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from steppe._shared.cli_options import (
    AT_LEAST_ONE,
    NAMES,
    OUTPUT,
    THREAD_COUNT,
    WHERE,
    Device,
    limited,
)
from steppe._shared.console import refusals
from steppe._shared.interrupts import ending_at_once
from steppe.bench.shapes import check_models


def bench(
    *models: Annotated[str, Parameter(metavar="MODEL")],
    optimizers: Annotated[Sequence[str] | None, NAMES] = None,
    steps: Annotated[int, limited(AT_LEAST_ONE)] = 20,
    device: Device = "cpu",
    threads: Annotated[int | None, WHERE, limited(THREAD_COUNT)] = None,
    out_dir: Annotated[Path, OUTPUT, Parameter(metavar="DIR")] = Path("results", "bench"),
) -> None:
    """Time optimizers' steps against torch's fused AdamW and the memory's speed.

    Leave the machine alone meanwhile: AdamW against itself, which is always the first row, shows
    how much noise there is, and disturbed measurements are marked. The first steps are taken in
    processes of their own, with empty kernel caches and then with full ones.

    Parameters
    ----------
    models
        Models whose tensors are stepped: resnet18 (62 tensors, 11.7 M parameters), gpt2 (148,
        124 M), small (10 000 tensors of 100). gpt2 takes up to 8 GB and some minutes. And host
        time, what a step takes outside of its kernels, with warm caches: one (1 tensor of 64),
        resnet18-host and gpt2-host (as many tensors as those, of 16). Default: resnet18 small.
    optimizers
        Optimizers with commas between: a preset such as dualadam-int8, a class of steppe or
        torch.optim, or package.module:Class. Default: AdamW fused, foreach and as a loop, steppe's
        presets, and the device's peers of pytorch_optimizer, heavyball, torchao and flashoptim that
        are installed, such as heavyball-adamw.
    steps
        Number of steps of each optimizer that are timed; of host time twenty times as many.
    threads
        Number of CPU threads. Default: torch's.
    out_dir
        Directory for bench.json and bench.png.

    Examples
    --------
    State in 8 bits against state in full precision:

        steppe bench resnet18 --optimizers dualadam,dualadam-int8
    """
    with refusals(), ending_at_once():
        names = check_models(models or ("resnet18", "small"))
        AT_LEAST_ONE.check("steps", steps)
        THREAD_COUNT.check("threads", threads)
        # Imported here because torch takes two seconds: help and misspelt options do without.
        from steppe.bench.benchmark import plan_benchmark
        from steppe.bench.show import measure_and_report

        benchmark = plan_benchmark(
            names,
            None if optimizers is None else list(optimizers),
            steps=steps,
            device=device,
            threads=threads,
        )
        out_dir.mkdir(parents=True, exist_ok=True)
    measure_and_report(benchmark, out_dir)
