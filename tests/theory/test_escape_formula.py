"""The formula, against its closed forms, against quadrature, and against walkers."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import cumulative_trapezoid, trapezoid

import steppe.theory
from steppe.theory import (
    Escape,
    agreement,
    escape_time,
    limit_well,
    path_coefficient,
    simulate_escape,
)

PAGE = (Path(__file__).parents[2] / "docs" / "escape.md").read_text()

ETA, B, BARRIER, H_A, H_B, S = 0.003, 8.0, 0.7, 1.7, 0.6, 0.4
SETTING = {
    "lr": ETA, "batch_size": B, "barrier": BARRIER, "h_min": H_A, "h_saddle": H_B, "s": S,
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "q", "prefactor"),
    [
        ("sgd", 0.0, 2 * math.pi / H_A),
        ("adam", -0.5, 2 * math.pi * (H_A * H_B) ** -0.25 / math.sqrt(B)),
        ("invadam", 0.5, 2 * math.pi * math.sqrt(B) * H_B**0.25 * H_A**-1.75),
    ],
)
def test_closed_forms(method: str, q: float, prefactor: float) -> None:
    found = escape_time(method, **SETTING)
    scale = 2 * B ** (1 + q) * BARRIER / ETA
    terms = scale * S * H_A ** -(1 + q), scale * (1 - S) * H_B ** -(1 + q)
    assert found.terms == pytest.approx(terms, rel=1e-12)
    assert found.exponent == pytest.approx(sum(terms), rel=1e-12)
    assert found.prefactor == pytest.approx(prefactor / ETA, rel=1e-12)
    assert found.log == pytest.approx(math.log(prefactor / ETA) + sum(terms), rel=1e-12)


@pytest.mark.parametrize(("alpha", "same"), [(0.0, "adam"), (1.0, "invadam")])
@pytest.mark.parametrize("regime", ["local", "frozen"])
def test_dualadam_has_two_ends(alpha: float, same: str, regime: str) -> None:
    dual = escape_time("dualadam", **SETTING, alpha=alpha, regime=regime)
    assert dual.to_dict() == escape_time(same, **SETTING, regime=regime).to_dict()


def test_frozen_is_sgd_at_the_minimums_preconditioner() -> None:
    P = (H_A / B) ** -0.5
    sgd = escape_time("sgd", **SETTING | {"lr": ETA * P})
    adam = escape_time("adam", **SETTING, regime="frozen")
    assert adam.terms == pytest.approx(sgd.terms, rel=1e-12)
    assert adam.prefactor == pytest.approx(sgd.prefactor, rel=1e-12)
    assert escape_time("sgd", **SETTING, regime="frozen") == escape_time("sgd", **SETTING)


def first_passage(method: str, alpha: float | None, regime: str) -> tuple[float, Escape]:
    """Solve −P·L'·u' + D·u'' = −1, which Itô's diffusion gives, by quadrature."""
    h_min, h_saddle, batch, lr = 1.2, 0.9, 2.0, 0.01

    def preconditioner(v: np.ndarray) -> np.ndarray:
        inverse = np.sqrt(v)
        weights = {"sgd": (0, 1, 0), "adam": (1, 0, 0), "invadam": (0, 0, 1)}
        direct, plain, times = weights.get(method, (1 - (alpha or 0), 0, alpha))
        return direct / inverse + plain + times * inverse

    barrier = 9.0 * lr * float(preconditioner(np.array(h_min / batch))) * h_min / batch
    top = math.sqrt(2 * barrier * (1 / h_min + 1 / h_saddle))
    joint = top * h_saddle / (h_min + h_saddle)
    x = np.linspace(-1.5 * top, 2 * top - joint, 400_001)
    at_min = x < joint
    slope = np.where(at_min, h_min * x, h_saddle * (top - x))
    C = np.where(at_min, h_min, h_saddle) / batch
    p = (
        preconditioner(C)
        if regime == "local"
        else np.full_like(C, preconditioner(np.array(h_min / batch)))
    )
    D = lr * p**2 * C / 2
    height = cumulative_trapezoid(p * slope / D, x, initial=0)
    height -= height.min()
    inner = cumulative_trapezoid(np.exp(-height) / D, x, initial=0)
    outer = np.where(x > 0, np.exp(height) * inner, 0)
    found = escape_time(
        method, lr=lr, batch_size=batch, barrier=barrier, h_min=h_min, h_saddle=h_saddle,
        s=path_coefficient(h_min, h_saddle), alpha=alpha, regime=regime,
    )  # fmt: skip
    return float(trapezoid(outer, x)) / lr, found


@pytest.mark.parametrize("regime", ["local", "frozen"])
@pytest.mark.parametrize(
    ("method", "alpha"), [("sgd", None), ("adam", None), ("invadam", None), ("dualadam", 0.7)]
)
def test_is_the_diffusions_mean_first_passage(
    method: str, alpha: float | None, regime: str
) -> None:
    steps, found = first_passage(method, alpha, regime)
    assert min(found.terms) > 3
    assert found.steps == pytest.approx(steps, rel=0.02)


@pytest.mark.parametrize(("method", "q"), [("adam", -0.5), ("sgd", 0.0), ("invadam", 0.5)])
def test_sharpness_counts_by_its_power(method: str, q: float) -> None:
    exponents = [
        escape_time(method, **SETTING | {"h_min": h, "h_saddle": h}).exponent for h in (1.0, 16.0)
    ]
    assert exponents[0] / exponents[1] == pytest.approx(16 ** (1 + q))


def test_noise_is_a_smaller_batch() -> None:
    for method in ("sgd", "adam", "invadam"):
        assert escape_time(method, **SETTING, noise=4.0) == escape_time(
            method, **SETTING | {"batch_size": B / 4}
        )
    noisier_there = escape_time("sgd", **SETTING, noise=(1.0, 3.0))
    plain = escape_time("sgd", **SETTING)
    assert noisier_there.terms == pytest.approx((plain.terms[0], plain.terms[1] / 3))


def test_overflow_is_infinite_and_its_logarithm_is_not() -> None:
    found = escape_time("sgd", **SETTING | {"barrier": 1e6})
    assert found.steps == math.inf
    assert math.isfinite(found.log)


def test_warnings_name_what_is_violated() -> None:
    calm = {"lr": 0.01, "batch_size": 1.0, "barrier": 0.1, "h_min": 1.0, "h_saddle": 1.0, "s": 0.5}
    assert escape_time("sgd", **calm).valid
    low = escape_time("sgd", **calm | {"barrier": 0.05, "s": 0.2})
    assert low.warnings == (
        "the exponent climbs by 2 at the minimum, less than 3: escapes are not rare",
    )
    fast = escape_time("sgd", **calm | {"lr": 0.03, "h_saddle": 0.5, "barrier": 1.0})
    assert not fast.valid
    assert fast.warnings == (
        "lr·P·h is 0.03 at the minimum, above 0.02: steps are too large for the diffusion limit",
    )


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("inv-adam", {}, "did you mean invadam"),
        ("sgd", {"barrier": 0.0}, "barrier must be a finite number > 0, got 0.0"),
        ("sgd", {"s": 0.0}, "s must lie between 0 and 1, .*got 0.0"),
        ("sgd", {"s": 1.0}, "s must lie between 0 and 1, .*got 1.0"),
        ("sgd", {"s": math.nan}, "s must lie between 0 and 1, .*got nan"),
        ("sgd", {"lr": -1.0}, "lr must be a finite number > 0, got -1.0"),
        ("sgd", {"batch_size": 0}, "batch_size must be a finite number > 0, got 0"),
        ("sgd", {"h_min": -2.0}, "h_min must be a finite number > 0, got -2.0"),
        ("sgd", {"h_saddle": -2.0}, r"h_saddle=-2.0 must be positive: the magnitude .*, 2.0"),
        ("sgd", {"h_saddle": math.inf}, "h_saddle must be a finite number > 0, got inf"),
        ("sgd", {"alpha": 0.5}, "alpha=0.5 is given for 'sgd'"),
        ("dualadam", {}, "alpha=None: 'dualadam' needs"),
        ("dualadam", {"alpha": 1.1}, "alpha must be from 0 to 1, got 1.1"),
        ("sgd", {"regime": "locale"}, "did you mean local"),
        ("sgd", {"noise": 0.0}, "noise must be a finite number > 0, got 0.0"),
        ("sgd", {"noise": (1.0, 2.0, 3.0)}, "noise must be one number, or two"),
        ("invadam", {"lr": 1e-200, "h_min": 1e-200}, r"temperature lr·P·C/2 is 0.0 at the minimum"),
        ("adam", {"h_min": 1e-320, "batch_size": 1e10}, r"C = .* is 0.0 at the minimum.*h_min=1e-"),
        (
            "sgd",
            {"lr": 1e-200, "batch_size": 1e100, "barrier": 1e100},
            "the exponent's term is inf at the minimum, .*lr=1e-200, batch_size=1e",
        ),
        ("sgd", {"h_min": 1e-250, "h_saddle": 1e100}, "the prefactor is nan at the minimum"),
    ],
)
def test_mistakes_are_named(method: str, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        escape_time(method, **SETTING | changes)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        (["sgd"], {}, r"method must be a name, got \['sgd'\]"),
        ("sgd", {"lr": "a"}, "lr must be a number, got 'a'"),
        ("sgd", {"s": "a"}, "s must be a number, got 'a'"),
        ("sgd", {"h_saddle": None}, "h_saddle must be a number, got None"),
        ("sgd", {"barrier": True}, "barrier must be a number, got True"),
        ("sgd", {"regime": 1}, "regime must be a name, got 1"),
        ("sgd", {"noise": "measured"}, "noise must be one number, or two, got 'measured'"),
        ("sgd", {"noise": ("a", 1.0)}, "noise must be a number, got 'a'"),
        ("dualadam", {"alpha": "a"}, "alpha must be a number, got 'a'"),
    ],
)
def test_what_is_no_number_or_name_is_named(method: str, changes: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        escape_time(method, **SETTING | changes)


def test_noise_is_any_pair() -> None:
    pairs = (1.0, 3.0), [1, 3], np.array([1.0, 3.0])
    assert len({escape_time("sgd", **SETTING, noise=pair).log for pair in pairs}) == 1


def test_no_name_is_a_function_and_a_module() -> None:
    """An import would hide one of the two."""
    modules = {path.stem for path in Path(steppe.theory.__file__).parent.glob("*.py")}
    assert not modules & set(steppe.theory.__all__)


def test_over_one_shared_saddle_the_order_may_turn() -> None:
    """E of a minimum nine times as sharp as another, over the other's: docs/escape.md."""
    measured = {
        saddle: [
            round(shared_saddle(method, 9.0, saddle) / shared_saddle(method, 1.0, saddle), 2)
            for method in ("adam", "sgd", "invadam")
        ]
        for saddle in (3.0, 1.0, 0.3, 0.1)
    }
    rows = re.findall(r"^ +\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    assert measured == {float(row[0]): [float(x) for x in row[1:]] for row in rows}


def shared_saddle(method: str, h: float, saddle: float) -> float:
    setting = SETTING | {"h_min": h, "h_saddle": saddle, "s": path_coefficient(h, saddle)}
    return escape_time(method, **setting).exponent


@pytest.mark.parametrize(("method", "alpha"), [("sgd", None), ("invadam", None), ("dualadam", 0.6)])
@pytest.mark.parametrize(("term", "ratio"), [(4.0, 0.6), (1e-9, 50.0), (1e13, 1e-4)])
def test_a_limit_wells_smaller_term_is_as_asked(
    method: str, alpha: float | None, term: float, ratio: float
) -> None:
    well = limit_well(method, term, ratio, batch_size=32.0, alpha=alpha)
    found = escape_time(method, **well, s=path_coefficient(1.0, ratio))
    assert min(found.terms) == pytest.approx(term, rel=1e-9)
    assert well["h_saddle"] / well["h_min"] == pytest.approx(ratio)


def test_no_limit_well_beyond_the_range_of_floats() -> None:
    with pytest.raises(ValueError, match="no curvature in the range of floats fits"):
        limit_well("adam", 1e200)
    with pytest.raises(TypeError, match="term must be a number, got 'a'"):
        limit_well("adam", "a")


@pytest.mark.thorough
@pytest.mark.parametrize(("method", "batch_size"), [("sgd", 1), ("adam", 16), ("invadam", 16)])
def test_walkers_follow_the_theory(method: str, batch_size: int) -> None:
    # With saddles as sharp as the minimum, every method would walk the same way up to a scale.
    shapes = (2.2, 1.08), (2.8, 1.0), (3.4, 0.93)
    wells = [limit_well(method, term, ratio, batch_size=batch_size) for term, ratio in shapes]
    theory = [
        escape_time(method, **well, s=path_coefficient(1.0, ratio))
        for well, (_, ratio) in zip(wells, shapes, strict=True)
    ]
    simulations = [
        simulate_escape(method, **well, walkers=round(4e7 / one.steps), seed=number)
        for number, (well, one) in enumerate(zip(wells, theory, strict=True))
    ]
    found = agreement(theory, simulations)
    # What benchmarks/escape.py finds at full size is within 0.02.
    assert abs(found.slope - 1.0) < 3 * found.slope_standard_error
    assert found.slope_standard_error < 0.05
    assert found.r > 0.98
    assert abs(found.bias) < 3 * found.bias_standard_error + 0.05


def test_a_fit_gives_back_its_line() -> None:
    """τ = prefactor·exp(1.2·E + 0.1)."""
    theory = [escape_time("sgd", **SETTING | {"barrier": b}) for b in (0.01, 0.02, 0.03)]
    well = limit_well("sgd", 1.0)
    walkers = simulate_escape("sgd", **well, walkers=5)
    means = [one.prefactor * math.exp(1.2 * one.exponent + 0.1) for one in theory]
    found = agreement(theory, [replace(walkers, mean=mean) for mean in means])
    assert found.slope == pytest.approx(1.2)
    assert found.r == pytest.approx(1.0)
    middle = theory[1].exponent
    assert found.bias == pytest.approx(0.2 * middle + 0.1)
    assert found.bias_standard_error == pytest.approx(1 / math.sqrt(15))


def test_a_fit_needs_two_and_as_many_of_each() -> None:
    walkers = simulate_escape("sgd", **limit_well("sgd", 1.0), walkers=5)
    theory = escape_time("sgd", **SETTING)
    with pytest.raises(ValueError, match="got 1 exponents and 1 simulations"):
        agreement([theory], [walkers])
    with pytest.raises(ValueError, match="got 2 exponents and 1 simulations"):
        agreement([theory] * 2, [walkers])
    still = simulate_escape("sgd", **limit_well("sgd", 3.0), walkers=5, max_steps=3)
    with pytest.raises(ValueError, match=r"all exponents are .*: a slope needs different ones"):
        agreement([theory] * 2, [walkers] * 2)
    with pytest.raises(ValueError, match="has no escapes"):
        agreement([theory] * 2, [walkers, still])
