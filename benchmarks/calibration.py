"""How often the verdicts of ``steppe compare`` are wrong, and what they find.

``python benchmarks/calibration.py`` repeats comparisons whose truth is known, and counts. *Real*
pools are drawn from the many trials of an optimizer: an optimizer against itself with other trials,
Adam with a warm-up against DualAdam, which end in the same place, and SAM against AdamW, whose gain
is real. *Simulated* pools have laws that are known exactly: skewed losses, accuracies in steps of
one sample with many ties, trials that diverge, and results that scatter differently but are worth
the same.

The trials are those of several studies that differ in ``--study-seed`` alone: what each of them
said, and all together, is set side by side. They are in ``docs/results/calibration-pools.json``;
``--studies FILE …`` takes them anew from what ``steppe report --json`` has written. The script
writes ``docs/results/calibration.json`` and the tables of ``docs/calibration.md``. It takes ten
minutes on one core; with ``--repeats 20`` one.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from calibration_trials import POOLS, READINGS, numbers_of, read_lrs, read_pools
from numpy.typing import NDArray

from steppe._shared.files import write_text
from steppe._shared.statistics import LEVEL
from steppe.compare import Difference, Pool, compare_pools, expected_best, load

Array = NDArray[np.float64]

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "docs" / "results" / "calibration.json"
PAGE = ROOT / "docs" / "calibration.md"
_MARK, _END = "<!-- benchmarks/calibration.py{} -->", "<!-- end -->"

#: Trials and budget of the plans that are checked.
PLANS = ((24, 4), (48, 8), (80, 8))
#: Comparisons of a family: what a real effect has to pass after Holm.
FAMILY = 7
#: Plans that look for a real gain, and the decades that they search lr in, about the default: all
#: three, and what --lr-decades leaves of them.
POWER_PLANS = ((24, 4), (48, 4), (80, 4))
LR_DECADES, DEFAULT_LR = (3.0, 2.0, 1.5), 1e-3
#: The optimizers that end in the same place, and the one that is better.
SAME, BETTER, BASELINE = ("adam+warmup", "dualadam"), "adamw+sam", "adamw"

_SWAPS = 1_999


@dataclass(frozen=True)
class Row:
    """What came out of many comparisons of one kind.

    Attributes
    ----------
    what, reading : str
        What was compared, and by which result.
    trials, k : int
        The plan.
    truth : float
        The true difference.
    comparisons : int
        How many.
    called_better, called_worse : float
        Shares with p < 0.05 to either side, not corrected.
    called_in_family : float
        Share that is called different after Holm over seven.
    covered : float
        Share of the intervals that hold the truth.
    error_ratio : float
        The mean jackknife error over the standard deviation of the estimates.
    """

    what: str
    reading: str
    trials: int
    k: int
    truth: float
    comparisons: int
    called_better: float
    called_worse: float
    called_in_family: float
    covered: float
    error_ratio: float


def main() -> None:
    """Run all comparisons, write them down, and put the table into the docs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--studies", type=Path, nargs="+", help="Take the real trials from these studies."
    )
    parser.add_argument("--repeats", type=int, default=400, help="Comparisons of each kind.")
    parser.add_argument("--out", type=Path, default=OUTPUT)
    given = parser.parse_args()
    if given.studies:
        numbers = numbers_of([load(path).results for path in given.studies])
        write_text(POOLS, json.dumps(numbers) + "\n")
    pools = read_pools()
    rows = [*real_rows(pools, given.repeats), *simulated_rows(given.repeats)]
    power = list(power_rows(pools["loss"], read_lrs(), given.repeats))
    found = {"comparisons": [asdict(row) for row in rows], "power": [asdict(row) for row in power]}
    write_text(given.out, json.dumps(found, indent=1) + "\n")
    if given.out == OUTPUT:
        write_text(PAGE, with_tables(PAGE.read_text(encoding="utf-8"), rows, power))
    print(table(rows), power_table(power), sep="\n\n")


def with_tables(page: str, rows: list[Row], power: list[Row]) -> str:
    """Return a page with tables of the rows, and of the studies, in the place of its own."""
    content = json.loads(POOLS.read_text(encoding="utf-8"))
    tables = {
        "": table(rows),
        ", power": power_table(power),
        ", studies": studies_table(content),
    }
    for mark, text in tables.items():
        page = _with(page, _MARK.format(mark), text)
    return page


def _with(page: str, mark: str, text: str) -> str:
    head, found, rest = page.partition(mark)
    _, end, tail = rest.partition(_END)
    if not (found and end):
        raise ValueError(f"page must have a line {mark!r} and one {_END!r}")
    return f"{head}{mark}\n\n{text}\n\n{end}{tail}"


def studies_table(content: Mapping[str, Any]) -> str:
    """Return what each study said of each optimizer, and all together, as a table of Markdown."""
    seeds = [str(each["study_seed"]) for each in content["studies"]]
    lines = [
        f"| minus {BASELINE} | by | seed {' | seed '.join(seeds)} | all together |",
        "| --- | --- |" + " --- |" * (len(seeds) + 1),
    ]
    for reading in READINGS:
        columns = [each["verdicts"][reading] for each in content["studies"]]
        for index, whole in enumerate(content["together"][reading]):
            cells = [_difference(column[index], reading) for column in columns]
            low, high = (_signed(whole[bound], reading) for bound in ("low", "high"))
            cells.append(f"{_difference(whole, reading)} [{low}, {high}]")
            lines.append(f"| {whole['optimizer']} | {reading} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(verdict: Mapping[str, Any], reading: str) -> str:
    mark = {"better": " ▲", "worse": " ▼"}.get(verdict["verdict"], "")
    return f"{_signed(verdict['estimate'], reading)}{mark}"


def _signed(value: float, reading: str) -> str:
    return f"{value:+.{2 if reading == 'score' else 4}f}".replace("-", "−")


def real_rows(pools: Mapping[str, Mapping[str, Pool]], repeats: int) -> Iterator[Row]:
    """Compare pools that are drawn without replacement from those of a large study."""
    for reading, by_name in pools.items():
        base = by_name[BASELINE]
        for trials, k in PLANS:
            described = partial(summarise, reading=reading, trials=trials, k=k)
            if 2 * trials > len(base):
                continue
            draws = _disjoint(base, trials, repeats)
            yield described(f"{BASELINE}, other trials", draws, truth=0.0)
            for name, other in ((SAME[1], SAME[0]), (BETTER, BASELINE)):
                ours, theirs = by_name[name], by_name[other]
                truth = expected_best(ours, k) - expected_best(theirs, k)
                draws = _paired(ours, theirs, trials, repeats)
                yield described(f"{name} − {other}", draws, truth=truth)


def power_rows(pools: Mapping[str, Pool], lrs: Array, repeats: int) -> Iterator[Row]:
    """Look for a real gain with more trials, and where the learning rate is better known."""
    ours, theirs = pools[BETTER], pools[BASELINE]
    for decades in LR_DECADES:
        # To four digits, as they were drawn.
        kept = np.flatnonzero(np.abs(np.log10(lrs / DEFAULT_LR)) <= decades / 2 + 1e-4)
        better, base = ours.take(kept), theirs.take(kept)
        for trials, k in POWER_PLANS:
            if 2 * trials > len(kept):
                continue
            yield summarise(
                f"lr in {decades:g} decades",
                _paired(better, base, trials, repeats),
                reading="loss",
                trials=trials,
                k=k,
                truth=expected_best(better, k) - expected_best(base, k),
            )


def simulated_rows(repeats: int) -> Iterator[Row]:
    """Compare pools of known laws."""
    laws: dict[str, tuple[Law, Law]] = {
        "equal laws": (Law(), Law()),
        "equal laws, other trials": (Law(shared=0.0), Law(shared=0.0)),
        "one fifth diverges": (Law(diverging=0.2), Law(diverging=0.2)),
        "unequal laws, worth the same": (Law(), Law(scatter=2.0)),
        "a gain of half a trial's scatter": (Law(gain=0.5), Law()),
    }
    for reading in READINGS:
        for trials, k in PLANS:
            for what, (ours, theirs) in laws.items():
                true_gain = worth(ours, reading, k) - worth(theirs, reading, k)
                # Those that are to be worth the same are moved by what they are not.
                shift = true_gain if what.startswith("unequal") else 0.0
                draws = (
                    _simulated(ours, theirs, reading, trials, seed, shift)
                    for seed in range(repeats)
                )
                yield summarise(
                    f"simulated: {what}",
                    draws,
                    reading=reading,
                    trials=trials,
                    k=k,
                    truth=true_gain - shift,
                )


def summarise(
    what: str,
    draws: Iterator[tuple[Pool, Pool]],
    *,
    reading: str,
    trials: int,
    k: int,
    truth: float,
) -> Row:
    """Count what comparisons of pools say."""
    found = [compare_pools(*pair, k, swaps=_SWAPS) for pair in draws]
    sign = 1 if reading == "score" else -1

    def share(holds: Callable[[Difference], bool]) -> float:
        return sum(map(holds, found)) / len(found)

    estimates = np.array([each.estimate for each in found])
    errors = np.array([each.shares.trials for each in found])
    return Row(
        what=what,
        reading=reading,
        trials=trials,
        k=k,
        truth=truth,
        comparisons=len(found),
        called_better=share(lambda each: each.p < LEVEL and sign * each.estimate > 0),
        called_worse=share(lambda each: each.p < LEVEL and sign * each.estimate < 0),
        called_in_family=share(lambda each: each.p < LEVEL / FAMILY),
        covered=share(lambda each: each.low <= truth <= each.high),
        error_ratio=float(errors.mean() / estimates.std(ddof=1)),
    )


def table(rows: list[Row]) -> str:
    """Return the rows as a table of Markdown."""
    lines = [
        "| compared | by | N, k | called better | called worse | after Holm over 7 | "
        "interval holds the truth | error ÷ scatter |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        shares = (row.called_better, row.called_worse, row.called_in_family, row.covered)
        cells = [_percent(share, row.comparisons) for share in shares]
        lines.append(
            f"| {row.what} | {row.reading} | {row.trials}, {row.k} | {' | '.join(cells)} | "
            f"{row.error_ratio:.2f} |"
        )
    return "\n".join(lines)


def power_table(rows: list[Row]) -> str:
    """Return how often a real gain is found as a table of Markdown."""
    lines = [
        "| searched | N, k | gain in loss | found | after Holm over 7 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        found = (row.called_better, row.called_in_family)
        cells = [_percent(share, row.comparisons) for share in found]
        lines.append(
            f"| {row.what} | {row.trials}, {row.k} | {-row.truth:.4f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _percent(share: float, count: int) -> str:
    error = 100 * math.sqrt(share * (1 - share) / count)
    return f"{100 * share:.1f} ± {error:.1f} %"


def _disjoint(pool: Pool, trials: int, repeats: int) -> Iterator[tuple[Pool, Pool]]:
    for seed in range(repeats):
        drawn = np.random.default_rng(seed).permutation(len(pool))
        yield pool.take(drawn[:trials]), pool.take(drawn[trials : 2 * trials])


def _paired(ours: Pool, theirs: Pool, trials: int, repeats: int) -> Iterator[tuple[Pool, Pool]]:
    for seed in range(repeats):
        drawn = np.random.default_rng(seed).permutation(len(ours))[:trials]
        yield ours.take(drawn), theirs.take(drawn)


# Samples of validation and test sets, as of digits.
_VALIDATION, _TEST = 251, 540
_LARGE = 400_000


@dataclass(frozen=True)
class Law:
    """How trials of a simulated optimizer come out.

    A trial's error rate is skewed: e^(0.5·z), of a normal z that depends on its settings (a share
    of them far from the best) and its seed.

    Attributes
    ----------
    gain : float
        How much lower z is than another optimizer's, in standard deviations.
    scatter : float
        Standard deviation of z.
    diverging : float
        Share of trials that diverge.
    shared : float
        Correlation of trials of the same number.
    """

    gain: float = 0.0
    scatter: float = 1.0
    diverging: float = 0.0
    shared: float = 0.7


def _simulated(
    ours: Law, theirs: Law, reading: str, trials: int, seed: int, shift: float
) -> tuple[Pool, Pool]:
    generator = np.random.default_rng((seed, trials))
    common = generator.normal(size=trials)
    first = _draw(ours, reading, common, generator)
    second = _draw(theirs, reading, common, generator)
    return first, Pool(second.score, second.loss, second.test + shift)


def _draw(law: Law, reading: str, common: Array, generator: np.random.Generator) -> Pool:
    """Draw a pool: accuracies are shares of samples, with ties; losses are skewed."""
    trials = len(common)
    own = generator.normal(size=trials)
    z = law.scatter * (law.shared * common + math.sqrt(1 - law.shared**2) * own) - law.gain
    errors = np.minimum(0.9, 0.03 * np.exp(0.5 * z))
    score = 1 - generator.binomial(_VALIDATION, errors) / _VALIDATION
    loss = errors * np.exp(0.1 * generator.normal(size=trials))
    if reading == "score":
        test = 100 * (1 - generator.binomial(_TEST, errors) / _TEST)
        worst = test.min()
    else:
        test = 3 * errors * np.exp(0.1 * generator.normal(size=trials))
        worst = test.max()
    diverged = generator.random(trials) < law.diverging
    return Pool(
        np.where(diverged, -np.inf, score),
        np.where(diverged, np.inf, loss),
        np.where(diverged, worst, test),
    )


def worth(law: Law, reading: str, k: int) -> float:
    """Return what the best of k trials of a law is worth, from four hundred thousand of them."""
    generator = np.random.default_rng(k)
    pool = _draw(law, reading, generator.normal(size=_LARGE), generator)
    shape = (_LARGE // k, k)
    order = np.lexsort((pool.loss.reshape(shape), -pool.score.reshape(shape)), axis=-1)
    best = np.take_along_axis(pool.test.reshape(shape), order[:, :1], axis=1)
    return float(best.mean())


if __name__ == "__main__":
    main()
