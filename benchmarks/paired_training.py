"""Paired training runs: each seed trains a network once with each case, from the same weights.

``weights_24_bits.py``, ``compressed_buffers.py`` and ``finetune_24_bits.py`` run
:func:`paired_command` with their cases. Each run takes the batches in the same order; the lr falls
along a half cosine; nothing is tuned.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cyclopts
import torch
from page_blocks import head, row, signed, with_block
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from steppe._shared.console import refusals
from steppe._shared.devices import processor_name
from steppe._shared.files import write_text
from steppe._shared.names import unknown_name_message
from steppe._shared.progress import progress
from steppe._shared.statistics import interval
from steppe.compare import LoadedTask, find_task

DOCS = Path(__file__).parents[1] / "docs"

#: Results by task, seed and case.
Results = dict[str, dict[str, dict[str, float]]]


class Case(NamedTuple):
    """One way to train: the model's number format, and its optimizer."""

    dtype: torch.dtype
    make: Callable[[list[Tensor], int], Optimizer]  # of parameters and the number of steps


#: Trains once, given a seed; returns what came out.
Train = Callable[[int, Case], float]


class Tasks(NamedTuple):
    """What is trained, and what is read."""

    load: Mapping[str, Callable[[], Train]]
    digits: int = 2  # of results behind the point


def paired_command(
    script: str, page: str, cases: Mapping[str, Case], tasks: Tasks | None = None
) -> Callable[..., None]:
    """Return the command of a script, which trains its cases and writes what came out.

    It writes docs/results/<script>.json as runs end, with hyphens in the name, and goes on from it
    after a kill; then the script's block of a page in docs/.

    Parameters
    ----------
    script
        The script's name.
    page
        The page's file name.
    cases
        By their names; the first is what the others are held against.
    tasks
        Default: digits and FashionMNIST, of which the test accuracy in percent is read.
    """
    trained = IMAGES if tasks is None else tasks

    def main(
        seeds: int = 40,
        task: str | None = None,
        page_only: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    ) -> None:
        """Train what is missing, task after task, and write the table."""
        with refusals():
            if seeds < 2:
                raise ValueError(f"seeds={seeds} is not valid: expected at least 2")
            if task is not None and task not in trained.load:
                raise ValueError(unknown_name_message("task", task, list(trained.load)))
        result, path = DOCS / "results" / f"{script.replace('_', '-')}.json", DOCS / page
        found = json.loads(result.read_text()) if result.exists() else {"runs": {}}
        if not page_only:
            for name in trained.load if task is None else [task]:
                _train_missing(name, trained.load[name](), cases, seeds, found, result)
        table = differences_table(found["runs"], list(cases), trained.digits)
        write_text(path, with_block(path.read_text(), script, table))

    return main


def _train_missing(
    name: str,
    train: Train,
    cases: Mapping[str, Case],
    seeds: int,
    found: dict[str, Any],
    result: Path,
) -> None:
    """Train on a task what is not among what was found, and write the file as runs end."""
    torch.set_num_threads(1)
    known = found["runs"].setdefault(name, {})
    with progress(name, seeds * len(cases)) as advance:
        for seed in range(seeds):
            results = known.setdefault(str(seed), {})
            for label, case in cases.items():
                if label not in results:
                    results[label] = train(seed, case)
                    found |= {"torch": torch.__version__, "processor": processor_name()}
                    write_text(result, json.dumps(found, indent=1) + "\n")
                advance(1)


def differences_table(runs: Results, cases: list[str], digits: int = 2) -> str:
    """Return each task's results with the first case, and the others' paired differences."""
    first, *others = cases
    lines = [head("", "seeds", first, *(f"{case} − {first}" for case in others))]
    for name, by_seed in runs.items():
        whole = [results for results in by_seed.values() if results.keys() >= set(cases)]
        cells = [f"{interval([results[first] for results in whole]).mean:.{digits}f}"]
        for case in others:
            found = interval([results[case] - results[first] for results in whole])
            cells.append(signed(found, digits))
        lines.append(row(name, str(len(whole)), *cells))
    return "\n".join(lines)


def steps_of(
    optimizer: Optimizer, count: int, epochs: int, batch_size: int, seed: int
) -> Iterator[Tensor]:
    """Yield the rows of one batch after the other; the optimizer steps once each was worked on."""
    steps = epochs * math.ceil(count / batch_size)
    schedule = LambdaLR(optimizer, lambda t: (1 + math.cos(math.pi * t / steps)) / 2)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(count, generator=order), batch_size):
            optimizer.zero_grad()
            yield rows
            optimizer.step()
            schedule.step()


def _load_images(name: str) -> Train:
    return partial(_train_on_images, find_task(name).task({"scale": "small"}).load())


def _train_on_images(loaded: LoadedTask, seed: int, case: Case) -> float:
    """Train once; return the test accuracy in percent."""
    task, data = loaded
    train: Any = data.train
    torch.manual_seed(seed)
    model = task.model().to(case.dtype)
    steps = task.epochs * math.ceil(len(train) / task.batch_size)
    optimizer = case.make(list(model.parameters()), steps)
    for rows in steps_of(optimizer, len(train), task.epochs, task.batch_size, seed):
        outputs = model(train.inputs[rows].to(case.dtype)).float()
        torch.autograd.backward(task.loss_of(outputs, train.targets[rows]))
    return _accuracy(model.eval(), data.test, case.dtype)


@torch.no_grad()
def _accuracy(model: torch.nn.Module, samples: Any, dtype: torch.dtype) -> float:
    """Return how many percent of the samples the model has right."""
    right = 0
    for inputs, targets in zip(
        *(torch.split(x, 500) for x in (samples.inputs, samples.targets)), strict=True
    ):
        answers: Tensor = model(inputs.to(dtype))
        right += int((answers.argmax(1) == targets).sum())
    return 100 * right / len(samples)


IMAGES = Tasks({name: partial(_load_images, name) for name in ("digits", "fashion-mnist")})
