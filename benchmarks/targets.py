"""Hold the time of a step on a CPU, over that of AdamW(fused=True), against what it is to be.

python benchmarks/targets.py [MODEL]... [--steps 40] [--threads 2]

Ends with status 1 if a target is missed or an optimizer could not be measured.
"""

from typing import Annotated

import torch
import typer

from steppe.bench.benchmark import attempt
from steppe.bench.contenders import find_contender
from steppe.bench.failure import Failure
from steppe.bench.shapes import check_models
from steppe.commands.console import refusals

_TWO_MOMENTS = {"resnet18": 0.85, "gpt2": 1.02, "small": 0.5}

#: The highest ratio that is good enough, by optimizer and model.
TARGETS = {
    "dualadam": _TWO_MOMENTS,
    "dualadam-switched": _TWO_MOMENTS,
    "invadam": _TWO_MOMENTS,
    "dualadam-scale-free": {"resnet18": 1.02, "gpt2": 1.25, "small": 0.6},
    "adamcm-keeping": {"resnet18": 1.2, "gpt2": 1.35, "small": 0.8},
    "adamcm-replacing": {"resnet18": 1.5, "gpt2": 1.8, "small": 0.8},
    "dualadam-bf16": {"resnet18": 0.8, "gpt2": 0.85},
    "dualadam-int8": {"resnet18": 1.0, "gpt2": 1.0},
}


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Default: all three.")] = None,
    steps: int = 20,
    threads: int | None = None,
) -> None:
    """Measure what has a target, and say which are missed."""
    if threads is not None:
        torch.set_num_threads(threads)
    with refusals():
        asked = check_models(models or ("resnet18", "gpt2", "small"))
    missed = [
        f"{model} {name}"
        for model in asked
        for name, targets in TARGETS.items()
        if model in targets and not meets(model, name, targets[model], steps)
    ]
    if missed:
        print(f"{len(missed)} missed: {', '.join(missed)}")
        raise typer.Exit(1)
    print("All met.")


def meets(model: str, name: str, target: float, steps: int) -> bool:
    """Measure one optimizer on one model, and print a line."""
    found = attempt(model, find_contender(name), steps, torch.device("cpu"))
    start = f"{model:<10}{name:<22}"
    if isinstance(found, Failure):
        print(f"{start}not measured: {found.reason}", flush=True)
        return False
    met = found.ratio.value <= target
    value, low, high = found.ratio
    verdict = "met" if met else "MISSED"
    print(f"{start}{value:6.2f} ({low:.2f}–{high:.2f}), target {target:.2f}: {verdict}", flush=True)
    return met


if __name__ == "__main__":
    typer.run(main)
