"""The gap between test and train loss where all fit the training data equally well."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from helpers.realistic_study import realistic
from steppe.compare.records.gap_at_common_loss import gaps_at_common_loss
from steppe.compare.records.results import POOL, Outcome, StudyResults
from steppe.compare.records.verdicts import Readings
from steppe.compare.report.tables.measures import gaps


def with_losses(
    test_of: Callable[[str, float, float], float],
    train_of: Callable[[str, float], float] = lambda name, drawn: drawn,
) -> StudyResults:
    """Return a study with losses of our own, from a number in [0, 1) drawn for each trial."""
    study, rng = realistic(), np.random.default_rng(0)
    trials = []
    for trial in study.trials:
        outcome = trial.outcome
        if trial.phase == POOL and outcome is not None and not outcome.diverged:
            train = train_of(trial.optimizer, float(rng.random()))
            test = test_of(trial.optimizer, train, float(rng.normal()))
            final = replace(outcome.final, train_loss=train, test_loss=test)
            trial = replace(trial, outcome=replace(outcome, final=final))
        trials.append(trial)
    return replace(study, trials=tuple(trials))


def names_of(study: StudyResults) -> list[str]:
    return [each.name for each in study.contenders]


def test_of_trials_on_parallel_lines_it_is_the_distance_of_the_lines() -> None:
    names = names_of(realistic())
    offset = {name: 0.1 * place for place, name in enumerate(names)}
    # Each fits less than the one before, too: the gap by itself would tell something else.
    less = {name: 0.7 * place for place, name in enumerate(names)}
    study = with_losses(
        lambda name, train, _: 2 + 0.25 * train + offset[name],
        lambda name, drawn: drawn + less[name],
    )
    found = gaps_at_common_loss(Readings(study))
    assert [each.name for each in found] == names
    common = found[0].train
    for each in found:
        assert each.at_common == pytest.approx(2 - 0.75 * common + offset[each.name])
        assert each.gap == pytest.approx(2 - 0.75 * each.train + offset[each.name])
    assert math.isnan(found[0].difference.mean)
    for each in found[1:]:
        for value in (each.difference.mean, each.difference.low, each.difference.high):
            assert value == pytest.approx(offset[each.name])


def test_less_fitting_alone_is_no_difference() -> None:
    """As of a contender whose gap is smaller by the half because its train loss is larger."""
    first, *_ = names_of(realistic())
    study = with_losses(
        lambda name, train, noise: 3 + 0.5 * train + 0.02 * noise,
        lambda name, drawn: 0.3 * drawn + (0.0 if name == first else 1.0),
    )
    found = gaps_at_common_loss(Readings(study))
    assert all(each.gap < found[0].gap - 0.4 for each in found[1:])
    for each in found[1:]:
        assert each.difference.low < 0 < each.difference.high
        assert abs(each.difference.mean) < 0.15


def test_diverged_trials_and_missing_losses() -> None:
    found = gaps_at_common_loss(Readings(realistic()))
    assert all(math.isfinite(each.at_common) for each in found)
    nothing = with_losses(lambda name, train, noise: train, lambda name, drawn: math.nan)
    assert gaps_at_common_loss(Readings(nothing)) == []
    assert gaps(Readings(nothing)).rows == []


def test_the_error_is_that_of_studies_repeated() -> None:
    """The interval covers the truth about as often as it says, of trials that scatter."""
    covered, count = 0, 40
    name = names_of(realistic())[1]
    rng = np.random.default_rng(1)
    for _ in range(count):
        noise = iter(rng.normal(size=10_000))
        study = with_losses(
            lambda contender, train, _: (
                3 + 0.5 * train + 0.1 * next(noise) + (0.2 if contender == name else 0.0)  # noqa: B023
            )
        )
        found = {each.name: each.difference for each in gaps_at_common_loss(Readings(study))}
        covered += found[name].low <= 0.2 <= found[name].high
    assert covered >= 0.85 * count


def test_the_table_has_a_row_for_each_contender() -> None:
    study = with_losses(lambda name, train, noise: 1 + train)
    table = gaps(Readings(study))
    assert [name for name, _ in table.rows] == names_of(study)
    assert [cell.text for cell in table.rows[0][1]][-1] == "–"
    assert isinstance(study.trials[0].outcome, Outcome)
