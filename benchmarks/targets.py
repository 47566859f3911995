"""Check the time of a step on a CPU, over the time of AdamW(fused=True), against targets.

python benchmarks/targets.py [MODEL]... [--steps 40] [--threads 2]

Those over resnet18 and gpt2 need a machine at rest: a step there waits for memory and for every
thread, and both belong to other work, too. Over small and the host models a step takes one core
from caches, and ratios of steps in turn hold beside other work, if their intervals are narrow.

Ends with status 1 if a target is missed or an optimizer could not be measured.
"""

import cyclopts
import torch

from steppe._shared.console import refusals
from steppe.bench import (
    MODELS,
    Failure,
    Measurement,
    check_models,
    disturbed,
    find_measured,
    try_measure,
)

_TWO_MOMENTS = {
    "resnet18": 1.0,
    "gpt2": 1.0,
    "small": 0.4,
    "one": 2.0,
    "resnet18-host": 1.2,
    "gpt2-host": 1.2,
}

#: The highest ratio that is good enough, by optimizer and model.
TARGETS = {
    "dualadam": _TWO_MOMENTS,
    "dualadam-switched": _TWO_MOMENTS,
    "invadam": {"resnet18": 1.0, "gpt2": 1.0, "small": 0.4},
    "dualadam-scale-free": {"resnet18": 1.05, "gpt2": 1.15, "small": 0.5},
    "adamcm-keeping": {
        "resnet18": 1.45,
        "gpt2": 1.45,
        "small": 0.75,
        "one": 4.0,
        "resnet18-host": 2.0,
        "gpt2-host": 2.0,
    },
    "adamcm-replacing": {"resnet18": 1.75, "gpt2": 1.75, "small": 0.75},
    "dualadam-bf16": {"resnet18": 0.8, "gpt2": 0.8},
    "dualadam-int8": {"resnet18": 0.95, "gpt2": 0.95},
    "dualadam-24bit": {"resnet18": 1.0, "gpt2": 1.0},
}


def main(
    models: list[str] | None = None,
    *,
    steps: int = 20,
    threads: int | None = None,
) -> None:
    """Measure what has a target, and say which are missed.

    Parameters
    ----------
    models
        Default: all.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    with refusals():
        asked = check_models(models or MODELS)
    missed = [line for model in asked for line in misses(model, steps)]
    if missed:
        print(f"{len(missed)} missed: {', '.join(missed)}")
        raise SystemExit(1)
    print("All met.")


def misses(model: str, steps: int) -> list[str]:
    """Measure the optimizers that have a target on a model; return those that missed it."""
    names = [name for name, targets in TARGETS.items() if model in targets]
    cpu = torch.device("cpu")
    outcomes = [try_measure(model, find_measured(name), steps, cpu) for name in names]
    doubtful = disturbed(one for one in outcomes if isinstance(one, Measurement))
    missed = []
    for outcome in outcomes:
        target = TARGETS[outcome.optimizer][model]
        problem = objection(outcome, target, outcome in doubtful)
        if problem:
            missed.append(f"{model} {outcome.optimizer}")
        print(f"{model:<14}{outcome.optimizer:<22}{described(outcome, target)}{problem or 'met'}")
    return missed


def objection(outcome: Measurement | Failure, target: float, is_doubtful: bool) -> str | None:
    """Return why the target is not met, or None if it is."""
    if isinstance(outcome, Failure):
        return f"not measured: {outcome.reason}"
    if is_doubtful:
        return "disturbed by other work, measure again"
    return "missed" if outcome.ratio.value > target else None


def described(outcome: Measurement | Failure, target: float) -> str:
    """Return ratio, interval and target as text."""
    if isinstance(outcome, Failure):
        return ""
    value, low, high = outcome.ratio
    return f"{value:.2f} ({low:.2f}–{high:.2f}), target {target:.2f}: "


if __name__ == "__main__":
    cyclopts.run(main)
