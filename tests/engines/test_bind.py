"""One rule, bound to several modules, computes the same."""

import ast
import inspect
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
import torch

from steppe import rules
from steppe._engines import bind

FUNCTIONS = dict(inspect.getmembers(rules, inspect.isfunction))
RULES = [f for f in FUNCTIONS.values() if list(inspect.signature(f).parameters)[:2] == ["p", "g"]]


def operands(rule: Callable[..., Any]) -> list[np.ndarray | float]:
    """Three elements for each tensor, one number for each scalar; all positive, as v must be."""
    names = list(inspect.signature(rule).parameters)
    scalars = {"first": 0.0, "inverse": 0.3, "eps": 1e-8}
    tensors = {"p", "g", "m", "v", "peak", "mean", "buffer", "total"}
    generator = np.random.default_rng(0)
    return [
        generator.uniform(0.1, 2.0, 3) if name in tensors else scalars.get(name, 0.7)
        for name in names
    ]


def outputs(result: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_torch_numpy_and_numba_agree(rule: Callable[..., Any]) -> None:
    arguments = operands(rule)
    whole = outputs(bind(rule, np)(*arguments))
    tensors = [torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in arguments]
    for ours, truth in zip(outputs(bind(rule, torch)(*tensors)), whole, strict=True):
        np.testing.assert_allclose(ours, truth, rtol=1e-14)
    compiled = bind(rule, np, numba.njit)
    for i in range(3):
        element = [float(x[i]) if isinstance(x, np.ndarray) else x for x in arguments]
        for ours, truth in zip(outputs(compiled(*element)), whole, strict=True):
            np.testing.assert_allclose(ours, truth[i], rtol=1e-14)


def test_rules_import_nothing_and_know_only_xp() -> None:
    tree = ast.parse(inspect.getsource(rules))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    known = {"xp", "float", "sqrt", "abs", "maximum", "clip", "where", "argmin", *FUNCTIONS}
    for function in FUNCTIONS.values():
        assert set(function.__code__.co_names) <= known, function.__name__


def test_element_rules_do_no_arithmetic_among_scalars() -> None:
    """A number in a rule is a sign of it; it would also make a float32 kernel compute in double."""
    for rule in RULES:
        helpers = [FUNCTIONS[name] for name in rule.__code__.co_names if name in FUNCTIONS]
        for function in (rule, *helpers):
            numbers = [c for c in function.__code__.co_consts if isinstance(c, int | float)]
            assert not numbers, function.__name__


def test_equal_bindings_are_one_object_and_leave_the_rule_alone() -> None:
    assert bind(rules.adam, np) is bind(rules.adam, np)
    assert bind(rules.adam, np) is not bind(rules.adam, torch)
    assert rules.xp is None


def test_wrap_is_applied_to_the_rule_and_its_helpers_once_each() -> None:
    wrapped = []

    def note(function: Callable[..., Any]) -> Callable[..., Any]:
        wrapped.append(function.__name__)
        return function

    bind(rules.adam_cg, np, note)
    assert sorted(wrapped) == ["adam", "adam_cg", "denominator", "ema"]


FACTOR = 2.0


def reads_a_constant(x: float) -> float:
    return FACTOR * x


def has_a_default(x: float, *, factor: float = 2.0) -> float:
    return factor * x


def has_a_comprehension(x: float) -> float:
    return sum([abs(y) for y in (x, x)])


def closes_over() -> Callable[..., Any]:
    factor = 2.0
    return lambda x: factor * x


def calls_one_that_reads_a_constant(x: float) -> float:
    return reads_a_constant(x)


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (closes_over(), "uses 'factor' of an enclosing function; expected a function of a module"),
        (has_a_default, "defaults of the keyword-only arguments 'factor'; expected none"),
        (has_a_comprehension, "has a lambda, a comprehension or a function within it"),
        (reads_a_constant, "reads the global 'FACTOR', which is not a function"),
        (calls_one_that_reads_a_constant, r"reads_a_constant reads the global 'FACTOR'"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_what_a_copy_would_lack_is_refused(rule: Callable[..., Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        bind(rule, np)


def test_defaults_are_kept() -> None:
    def scaled(x: float, factor: float = 2.0) -> float:
        return factor * x

    assert bind(scaled, np)(3.0) == 6.0
