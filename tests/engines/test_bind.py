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
