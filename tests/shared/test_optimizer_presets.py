"""All commands understand the same names of optimizers."""

import pytest
import torch

import steppe
from steppe._shared.optimizer_presets import PRESETS, find_optimizer
from steppe._shared.recipes import find_recipe
from steppe.bench import find_measured
from steppe.bench.presets import TIMING_PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_studies_and_benchmarks_mean_the_same_by_a_preset(name: str) -> None:
    recipe, measured = find_recipe(name), find_measured(name)
    assert (recipe.cls, recipe.preset) == (measured.cls, measured.options)


@pytest.mark.parametrize("name", PRESETS)
def test_the_class_takes_the_arguments_of_a_preset(name: str) -> None:
    cls, arguments = find_optimizer(name.upper())
    optimizer = cls([torch.zeros(2, requires_grad=True)], lr=0.1, **arguments)
    assert arguments.keys() <= optimizer.defaults.keys()


def test_no_preset_hides_a_class_or_another_preset() -> None:
    assert not PRESETS.keys() & TIMING_PRESETS.keys()
    classes = {name.lower() for module in (torch.optim, steppe) for name in dir(module)}
    assert not classes & {*PRESETS, *TIMING_PRESETS}


@pytest.mark.parametrize("name", TIMING_PRESETS)
def test_presets_for_timing_are_not_for_studies(name: str) -> None:
    with pytest.raises(ValueError, match=f"no optimizer is called '{name}'"):
        find_recipe(name)
