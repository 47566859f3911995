"""What the best of k keeps once weights or inputs are changed: by enumeration and by hand."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from helpers import synthetic_studies as studies
from helpers.synthetic_studies import diverged, outcome
from steppe._shared.statistics import t_quantile
from steppe.compare.records.best_of_k import degrees_of_freedom, weights
from steppe.compare.records.json_format import from_json, to_json
from steppe.compare.records.measure_names import CLEAN, CORRUPTED, split_name
from steppe.compare.records.packed_numbers import pack_floats
from steppe.compare.records.results import (
    FinalScores,
    MetricDescription,
    Outcome,
    PerturbedScores,
    StudyPlan,
    StudyResults,
    load,
)
from steppe.compare.records.robustness import RobustReadings
from steppe.compare.records.verdicts import Readings

K, TRIALS, STRETCHES = 2, 6, 4
ROUNDED, NOISE, BLUR = "2 bits absmax", "noise 1", "blur 3"
PERPLEXITY = MetricDescription("perplexity", "", 1.0, higher_is_better=False, of_mean="exp")
Rows = list[list[float]]


def rows(seed: int) -> Rows:
    """Draw what stretches of samples add to a score, exact in float16: validation, then test."""
    drawn = np.random.default_rng(seed).integers(1, 64, (2, STRETCHES)) / 64
    return drawn.tolist()


def perturbed(parts: Rows, of_mean: Callable[[float], float] = float) -> PerturbedScores:
    validation, test = (of_mean(fmean(part)) for part in parts)
    return PerturbedScores(validation, test, 0.5, 0.5, *map(pack_floats, parts))


def run(clean: float, measures: dict[str, PerturbedScores]) -> Outcome:
    """Make a run of a clean validation score; its clean test score is unlike it."""
    final = FinalScores(0.1, 0.95, 0.3, clean, 0.3, 1.0 - clean)
    return outcome(final=final, robustness=measures)


def readings(
    pools: dict[str, Sequence[Outcome | None]], **changes: Any
) -> tuple[StudyResults, RobustReadings]:
    plan = StudyPlan(K, TRIALS, family=tuple(pools)[1:])
    results = studies.study(pools, plan=plan, **changes)
    return results, RobustReadings(Readings(results))


def enumerated(keys: Sequence[float], values: Sequence[float], k: int = K) -> float:
    """Return the mean value over all choices of k trials, each time of that with the best key."""
    chosen = [max(each, key=lambda i: keys[i]) for each in combinations(range(len(keys)), k)]
    return fmean(values[place] for place in chosen)


CLEAN_SCORES = (0.5, 0.9, 0.7, 0.6, 0.8, 0.4)
DRAWN = {
    name: {measure: [rows(hash_) for hash_ in range(start, start + TRIALS)]
           for measure, start in ((CLEAN, first), (ROUNDED, first + 20), (NOISE, first + 40),
                                  (BLUR, first + 60))}
    for name, first in (("adamw", 100), ("sam", 200))
}  # fmt: skip


def pool(name: str, of_mean: Callable[[float], float] = float) -> list[Outcome]:
    return [
        run(clean, {m: perturbed(parts[i], of_mean) for m, parts in DRAWN[name].items()})
        for i, clean in enumerate(CLEAN_SCORES)
    ]


def values(name: str, measure: str, part: int) -> list[float]:
    return [fmean(each[part]) for each in DRAWN[name][measure]]


@pytest.fixture(scope="module")
def robust() -> RobustReadings:
    return readings({name: pool(name) for name in DRAWN})[1]


@pytest.mark.parametrize("measure", [CLEAN, ROUNDED, BLUR])
def test_clean_validation_data_choose(robust: RobustReadings, measure: str) -> None:
    wanted = enumerated(CLEAN_SCORES, values("sam", measure, 1))
    assert robust.expected("sam", measure).mean == pytest.approx(100 * wanted)


@pytest.mark.parametrize("measure", [ROUNDED, BLUR])
def test_tuned_for_it_its_own_validation_value_chooses(
    robust: RobustReadings, measure: str
) -> None:
    wanted = enumerated(values("sam", measure, 0), values("sam", measure, 1))
    assert robust.expected("sam", measure, tuned=True).mean == pytest.approx(100 * wanted)
    assert wanted != pytest.approx(enumerated(CLEAN_SCORES, values("sam", measure, 1)))


def test_corrupted_inputs_are_the_mean_over_corruptions(robust: RobustReadings) -> None:
    noise, blur = ([values("sam", each, part) for part in (0, 1)] for each in (NOISE, BLUR))
    validation, test = (np.mean([noise[part], blur[part]], axis=0).tolist() for part in (0, 1))
    wanted = {False: enumerated(CLEAN_SCORES, test), True: enumerated(validation, test)}
    for tuned, value in wanted.items():
        found = robust.expected("sam", CORRUPTED, tuned=tuned)
        assert found.mean == pytest.approx(100 * value)


def spread(parts: Sequence[np.ndarray], order: Sequence[int]) -> np.ndarray:
    """Return what stretches of test samples add to the best of k, whose trials are best first."""
    return np.tensordot(weights(TRIALS, K), np.array(parts)[list(order)], 1)


def best_first(keys: Sequence[float]) -> list[int]:
    return sorted(range(len(keys)), key=lambda i: -keys[i])


def standard_error(contributions: np.ndarray) -> float:
    return float(contributions.std(ddof=1) / math.sqrt(len(contributions)))


@pytest.mark.parametrize("measure", [ROUNDED, CORRUPTED])
def test_the_three_parts_of_a_difference_s_error(robust: RobustReadings, measure: str) -> None:
    parts = (NOISE, BLUR) if measure == CORRUPTED else (measure,)
    samples = {
        name: np.mean([DRAWN[name][each] for each in parts], axis=0) for name in DRAWN
    }  # trials × (validation, test) × stretches
    scores = {name: each[:, 0].mean(axis=1) for name, each in samples.items()}
    tests = {name: each[:, 1].mean(axis=1) for name, each in samples.items()}

    def difference(kept: list[int], keys: dict[str, np.ndarray]) -> float:
        sides = (enumerated(keys[name][kept], tests[name][kept]) for name in ("sam", "adamw"))
        return float(np.subtract(*sides))

    def jackknife(found: list[float]) -> float:
        return math.sqrt((len(found) - 1) * np.var(found))

    every = list(range(TRIALS))
    trials = jackknife([difference([i for i in every if i != left], scores) for left in every])
    groups = [
        {name: np.delete(each[:, 0], left, axis=1).mean(axis=1) for name, each in samples.items()}
        for left in range(STRETCHES)
    ]
    validation = jackknife([difference(every, keys) for keys in groups])
    ours, theirs = (spread(samples[n][:, 1], best_first(scores[n])) for n in ("sam", "adamw"))
    found = robust.difference("sam", "adamw", measure, tuned=True)
    wanted = [100 * each for each in (trials, standard_error(ours - theirs), validation)]
    assert found.shares == pytest.approx(wanted)
    assert min(wanted) > 0
    assert found.estimate == pytest.approx(100 * difference(every, scores))
    half = t_quantile(0.975, degrees_of_freedom(TRIALS, K)) * math.hypot(*wanted)
    change = robust.change("sam", "adamw", measure, tuned=True)
    assert change.mean == found.estimate
    for bounds in (change, found):
        wanted = (found.estimate - half, found.estimate + half)
        assert (bounds.low, bounds.high) == pytest.approx(wanted)


def test_a_trial_that_diverged_is_chosen_last_and_worth_the_worst_of_the_study() -> None:
    ours = [diverged(), *pool("sam")[1:5], studies.FAILED]
    _, robust = readings({"adamw": pool("adamw"), "sam": ours})
    worst = min(*values("adamw", ROUNDED, 1), *values("sam", ROUNDED, 1)[1:5])
    test = [worst, *values("sam", ROUNDED, 1)[1:5], worst]
    for tuned, keys in ((False, CLEAN_SCORES), (True, values("sam", ROUNDED, 0))):
        wanted = enumerated([-2.0, *keys[1:5], -1.0], test)
        assert robust.expected("sam", ROUNDED, tuned=tuned).mean == pytest.approx(100 * wanted)


def test_perplexities_choose_the_lowest_and_scatter_by_the_slope() -> None:
    """A trial that diverged adds nothing to the error over samples, however bad it is."""
    ours = [*pool("sam", math.exp)[:5], diverged()]
    theirs = [run(0.5, {ROUNDED: perturbed([[8.0] * STRETCHES] * 2, math.exp)})] * TRIALS
    _, robust = readings({"adamw": theirs, "sam": ours}, metric=PERPLEXITY)
    validation, test = (np.array(DRAWN["sam"][ROUNDED])[:5, part] for part in (0, 1))
    keys = [*-np.exp(validation.mean(axis=1)), -math.inf]
    perplexities = np.exp(test.mean(axis=1))
    wanted = enumerated(keys, [*perplexities, math.exp(8.0)])
    assert not robust.higher_is_better(ROUNDED)
    found = robust.difference("sam", "adamw", ROUNDED, tuned=True)
    assert found.estimate == pytest.approx(wanted - math.exp(8.0))
    slopes = np.vstack([perplexities[:, None] * test, np.zeros((1, STRETCHES))])
    assert found.shares.test == pytest.approx(standard_error(spread(slopes, best_first(keys))))
    clean = enumerated([-each for each in CLEAN_SCORES[:5]] + [-9.0], [*perplexities, math.exp(8)])
    assert robust.expected("sam", ROUNDED).mean == pytest.approx(clean)


def test_a_perplexity_beyond_all_numbers_leaves_an_interval() -> None:
    endless = [[800.0] * STRETCHES, [800.0, 900.0, 700.0, 850.0]]
    beyond = PerturbedScores(math.inf, math.inf, 800.0, 800.0, *map(pack_floats, endless))
    ours = [*pool("sam", math.exp)[:5], run(0.9, {ROUNDED: beyond})]
    _, robust = readings({"adamw": pool("adamw", math.exp), "sam": ours}, metric=PERPLEXITY)
    for tuned in (False, True):
        change = robust.change("sam", "adamw", ROUNDED, tuned=tuned)
        assert all(map(math.isfinite, (change.mean, change.low, change.high)))


MODEL = {
    "kurtosis": (5.0, 4.0, 3.0, 6.0, 7.0, 8.0),
    "top 5": (0.1, 0.4, 0.2, 0.6, 0.5, 0.3),
}


def test_numbers_of_a_model_have_their_own_unit_and_direction() -> None:
    """Of kurtosis less is better, of a user's measure more; what ends in 5 is no corruption."""
    ours = [
        replace(each, robustness={
            **each.robustness, **{m: PerturbedScores(v[i], v[i]) for m, v in MODEL.items()}
        })
        for i, each in enumerate(pool("sam"))
    ]  # fmt: skip
    _, robust = readings({"adamw": ours, "sam": [*ours[:5], diverged()]})
    assert robust.measures == [CLEAN, ROUNDED, NOISE, BLUR, *MODEL, CORRUPTED]
    assert robust.corruptions == [NOISE, BLUR]
    for measure, sign, worst in (("kurtosis", -1, 8.0), ("top 5", 1, 0.1)):
        found = MODEL[measure]
        assert robust.higher_is_better(measure) == (sign > 0)
        assert not robust.is_score(measure)
        assert robust.expected("adamw", measure).mean == pytest.approx(
            enumerated(CLEAN_SCORES, found)
        )
        tuned = robust.expected("sam", measure, tuned=True).mean
        keys = [*(sign * each for each in found[:5]), -math.inf]
        assert tuned == pytest.approx(enumerated(keys, [*found[:5], worst]))
        assert robust.difference("sam", "adamw", measure).shares[1:] == (0.0, pytest.approx(0.0))


def test_scales_run_from_mild_to_strong() -> None:
    names = ("2 bits absmax", "4 bits absmax", "weight noise 0.5", "weight noise 0.1", "blur 1")
    scores = {name: perturbed(rows(0)) for name in (CLEAN, *names)}
    _, robust = readings({"adamw": [run(0.5, scores)] * TRIALS})
    assert robust.scales == {
        "bits absmax": ["4 bits absmax", "2 bits absmax"],
        "weight noise": ["weight noise 0.1", "weight noise 0.5"],
        "blur": ["blur 1"],
    }
    assert list(robust.scales_of_weights) == ["bits absmax", "weight noise"]
    # The mean over a single corruption is that one.
    assert CORRUPTED not in robust.measures
    assert split_name("bare") == ("bare", None)


def test_a_measure_that_one_run_lacks_is_none() -> None:
    ours = pool("sam")
    kept = {name: each for name, each in ours[3].robustness.items() if name != BLUR}
    ours[3] = replace(ours[3], robustness=kept)
    _, robust = readings({"adamw": pool("adamw"), "sam": ours})
    assert robust.measures == [CLEAN, ROUNDED, NOISE]
    assert not readings({"adamw": [*pool("adamw")[:5], run(0.5, {})]})[1].measures


def test_nothing_is_read_before_all_trials_have_ended() -> None:
    results, robust = readings({"adamw": pool("adamw")[:5]})
    assert not results.complete
    assert (robust.measures, robust.scales) == ([], {})


def test_scores_come_back_from_json_as_they_were_in_a_compact_list() -> None:
    scores = perturbed([[0.5, 0.25], [1.0, 0.75]])
    made = run(0.5, {CLEAN: scores, "kurtosis": PerturbedScores(3.5, 4.0)})
    content = json.loads(json.dumps(to_json(made), allow_nan=False))
    assert content["robustness"] == {
        CLEAN: [0.375, 0.875, 0.5, 0.5, scores.validation_samples, scores.test_samples],
        "kurtosis": [3.5, 4.0, None, None, "", ""],
    }
    again = from_json(Outcome, content)
    assert repr(again) == repr(made)
    assert "robustness" not in to_json(outcome())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (3, "['blur 3'] must be a list of 6 fields, got 3"),
        ([1.0, 2.0], "['blur 3'] must be a list of 6 fields, got [1.0, 2.0]"),
        ([1, True, 1, 1, "", ""], "['blur 3'] must be four numbers and two strings, got [1, True"),
        ([1, 1, 1, 1, "", 2], "['blur 3'] must be four numbers and two strings, got [1, 1, 1, 1"),
        ([1, 1, 1, 1, "", "x"], "['blur 3'].test_samples must be packed numbers such as"),
    ],
)
def test_damaged_scores_are_refused_with_their_name(
    tmp_path: Path, entry: Any, message: str
) -> None:
    path = tmp_path / "damaged.json"
    readings({name: pool(name) for name in DRAWN})[0].save(path)
    content = json.loads(path.read_text())
    content["trials"][3]["outcome"]["robustness"][BLUR] = entry
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(f"trials[3].outcome.robustness{message}")):
        load(path)
