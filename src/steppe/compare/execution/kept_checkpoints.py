"""Measure robustness from the checkpoints that a study has kept, after it has ended.

A study that was run with ``--checkpoints all`` can be asked for more than it measured, without a
second training. The task must be the one that it was planned with: perturbations and measures of
one's own have to be in its file before the study begins.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from steppe._shared.files import write_text
from steppe._shared.messages import first_line
from steppe._shared.recipes import find_recipe
from steppe._shared.source_hash import steppe_source
from steppe.compare.planning.continuation import load_task
from steppe.compare.records.json_format import from_json, read_json, to_json
from steppe.compare.records.results import (
    POOL,
    PerturbedScores,
    StudyResults,
    Trial,
    trial_label,
)
from steppe.compare.tasks.task import LoadedTask
from steppe.compare.training import checkpoint
from steppe.compare.training.accelerator import make_accelerator
from steppe.compare.training.evaluation import evaluate
from steppe.compare.training.reproducibility import reproducible
from steppe.compare.training.robustness import robustness_of
from steppe.compare.training.run import Run, RunContext, RunSettings, run_settings_from_dict

if TYPE_CHECKING:
    from accelerate import Accelerator

_DIRECTORY = "robustness"
# Of validation losses, here and where the run was trained: other threads add up in another order.
_SAME_LOSS = 1e-3

Scores = dict[str, PerturbedScores]


def measure_checkpoints(
    results: StudyResults,
    context: RunContext,
    on_trial: Callable[[int], None] = lambda count: None,
) -> StudyResults:
    """Return a study's results with the robustness of all trials whose checkpoints were kept.

    What has been measured is kept in ``OUT/robustness``, a file for each checkpoint: after a kill
    it goes on from there. Each checkpoint is evaluated on validation data first, and refused if its
    loss is not the one that its trial ended with. Those of other studies in the directory, which
    may have the same optimizers, seeds and settings, are left alone.

    Parameters
    ----------
    results : StudyResults
        The study.
    context : RunContext
        Where its checkpoints are, where to evaluate them, and where the user's own task is.
    on_trial : callable
        Called with 1 after each trial.

    Raises
    ------
    ValueError
        The study measured its runs as it trained; the task or its data are not the study's; a trial
        of the pool has no checkpoint; or a checkpoint is not what its trial ended with.
    """
    setup = run_settings_from_dict(results.setup)
    if setup.robustness:
        raise ValueError("this study measured its runs as it trained: leave --robustness out")
    paths = _paths_by_run(context.out, setup)
    _check_kept(results, paths)
    with reproducible(context):
        measuring = _Measuring(setup, load_task(setup, "", context), context)
        trials = []
        for trial in results.trials:
            path = paths.get(_key(trial.optimizer, trial.seed, trial.settings))
            if trial.finite_outcome is not None and path is not None:
                found = measuring.scores(trial, path)
                trial = replace(trial, outcome=replace(trial.finite_outcome, robustness=found))
            trials.append(trial)
            on_trial(1)
    return replace(results, trials=tuple(trials), setup={**results.setup, "robustness": True})


class _Measuring:
    """A study's task on this machine, and where measurements are kept."""

    def __init__(self, setup: RunSettings, loaded: LoadedTask, context: RunContext) -> None:
        self._setup, self._loaded, self._out = setup, loaded, context.out / _DIRECTORY
        # Of a run only the number format counts here; no optimizer of the study is imported.
        run = Run(setup, find_recipe("adamw"), {}, 0)
        self._accelerator: Accelerator = make_accelerator(run, context)

    def scores(self, trial: Trial, path: Path) -> Scores:
        """Return a trial's scores: those that are kept, or else measured now."""
        identity = self._identity(path)
        kept = self._out / f"{path.stem}.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = read_json(kept)
            if content["identity"] == identity:
                return from_json(dict[str, PerturbedScores], content["scores"])
        found = self._measured(trial, path)
        write_text(kept, json.dumps({"identity": identity, "scores": to_json(found)}))
        return found

    def _identity(self, path: Path) -> str:
        """Return a hash of all that the scores depend on."""
        settings = self._loaded.task.robustness
        content = [
            hashlib.sha256(path.read_bytes()).hexdigest(),
            steppe_source(),
            torch.__version__,
            # The user's own measures are in the source of the task.
            self._setup.source,
            self._setup.fingerprint,
            [settings.samples, settings.seed, repr(settings.perturbations), *settings.measures],
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _measured(self, trial: Trial, path: Path) -> Scores:
        task, data = self._loaded
        label = trial_label(trial.optimizer, trial.phase, trial.number)
        device = self._accelerator.device
        content = checkpoint.read(path, device)
        model = task.model().to(device)
        try:
            model.load_state_dict(content["model"])
        except Exception as error:  # what a file holds may be anything
            raise ValueError(f"{path} does not fit {task.name}: {first_line(error)}") from error
        model = self._accelerator.prepare(model)
        inner = self._accelerator.unwrap_model(model)

        evaluated = partial(
            evaluate,
            inner,
            task,
            accelerator=self._accelerator,
            batch_size=self._setup.batch_size,
            sample_length=self._setup.length or 1,
        )
        assert trial.outcome is not None
        loss, expected = evaluated(data.validation).loss, trial.outcome.final.validation_loss
        if not math.isclose(loss, expected, rel_tol=_SAME_LOSS, abs_tol=1e-6):
            raise ValueError(
                f"{path} is not what {label} ended with: its validation loss is {loss:.6g}, and "
                f"was {expected:.6g}"
            )
        return robustness_of(inner, self._loaded, device, evaluated)


def _paths_by_run(out: Path, setup: RunSettings) -> Mapping[tuple[Any, ...], Path]:
    """Return where each run's checkpoint is, by optimizer, seed and settings."""
    found = {}
    for path in sorted((out / "checkpoints").glob("*.pt")):
        # A file that is damaged, or is something else, is nobody's checkpoint.
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            content = checkpoint.read(path, torch.device("cpu"))
            # Another study's may have the same key, and with another precision even the same loss.
            # Earlier versions did not say whose it is.
            if content.get("setup", setup.digest) == setup.digest:
                found[_key(content["optimizer"], content["seed"], content["settings"])] = path
    return found


def _key(optimizer: str, seed: int, settings: Mapping[str, float]) -> tuple[Any, ...]:
    return optimizer, seed, tuple(sorted(settings.items()))


def _check_kept(results: StudyResults, paths: Mapping[tuple[Any, ...], Path]) -> None:
    pool = [t for t in results.trials if t.phase == POOL and t.finite_outcome is not None]
    missing = [t for t in pool if _key(t.optimizer, t.seed, t.settings) not in paths]
    if missing:
        label = trial_label(missing[0].optimizer, POOL, missing[0].number)
        raise ValueError(
            f"{len(missing)} of {len(pool)} trials have no checkpoint, the first of them {label}: "
            "run the study with --checkpoints all, or with --robustness"
        )
