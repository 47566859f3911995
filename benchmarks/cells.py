"""Measure the cells of a study one after the other, each kept in a JSON file when it is done.

A kill loses no finished cell, and the same command goes on. A file says what it was measured with:
other code, another torch, another processor or other settings are refused.
"""

import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from steppe._shared.devices import processor_name
from steppe._shared.files import write_text
from steppe._shared.json_values import json_ready
from steppe._shared.progress import progress
from steppe._shared.source_hash import function_source, steppe_source

Cells = Mapping[str, tuple[Any, ...]]
Measure = Callable[..., Any]


def measured(
    path: Path, settings: Mapping[str, Any], cells: Cells, measure: Measure, workers: int
) -> dict[str, Any]:
    """Measure the cells that a file does not have yet, and return what it then holds.

    Parameters
    ----------
    path : Path
        The JSON file: "settings", and the results by the names of the cells.
    settings : mapping
        What all cells have in common; the machine, torch and the sources are added.
    cells : mapping
        The arguments of ``measure`` for each cell, by its name.
    measure : callable
        A function of a module, whose result has numbers in lists and dicts.
    workers : int
        Processes that measure side by side. 1 measures in this one.

    Raises
    ------
    ValueError
        The file was measured with other settings.
    """
    settings = json_ready({**settings, **made_with(measure)})
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    done: dict[str, Any] = found["cells"] if found else {}
    if found:
        check_same(path, found["settings"], settings)
    waiting = {name: cell for name, cell in cells.items() if name not in done}
    with progress(path.stem, len(waiting)) as advance:
        for name, result in _results(waiting, measure, workers):
            done[name] = json_ready(result)
            save(path, {"settings": settings, "cells": done})
            advance(1)
    return {"settings": settings, "cells": done}


def made_with(measure: Measure) -> dict[str, str]:
    """Return what numbers depend on beside the settings."""
    return {
        "processor": processor(),
        "torch": torch.__version__,
        "steppe": steppe_source(),
        "script": function_source([measure]),
    }


def processor() -> str:
    """Return the processor's name, and its features that decide how sums are rounded."""
    return f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}"


def check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to add to a file whose cells were measured otherwise."""
    other = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    if other:
        told = "; ".join(f"{name} {old.get(name)} there, {new.get(name)} now" for name in other)
        raise ValueError(f"{path} was measured with other settings: {told}. Name another --out")


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write the file, the same for the same cells in whatever order they were measured."""
    write_text(path, json.dumps(content, sort_keys=True, indent=1) + "\n")


def _results(waiting: Cells, measure: Measure, workers: int) -> Iterator[tuple[str, Any]]:
    if workers == 1:
        yield from ((name, measure(*cell)) for name, cell in waiting.items())
        return
    # Forked processes would inherit torch's and Numba's threads, and wait for them for ever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        jobs = {pool.submit(measure, *cell): name for name, cell in waiting.items()}
        try:
            yield from ((jobs[job], job.result()) for job in as_completed(jobs))
        finally:
            pool.shutdown(cancel_futures=True)
