"""The models' tensors, against the numbers that their papers and code have."""

from math import prod

import pytest

from steppe.bench.shapes import MODELS, check_models


@pytest.mark.parametrize(
    ("name", "tensors", "numbers"),
    [
        ("resnet18", 62, 11_689_512),
        ("gpt2", 148, 124_439_808),
        ("small", 10_000, 1_000_000),
        ("one", 1, 64),
        ("resnet18-host", 62, 62 * 16),
        ("gpt2-host", 148, 148 * 16),
    ],
)
def test_tensors_and_numbers(name: str, tensors: int, numbers: int) -> None:
    shapes = MODELS[name].shapes()
    assert len(shapes) == tensors
    assert sum(map(prod, shapes)) == numbers


def test_resnet18_halves_the_image_three_times() -> None:
    shortcuts = [shape for shape in MODELS["resnet18"].shapes() if shape[2:] == (1, 1)]
    assert shortcuts == [(128, 64, 1, 1), (256, 128, 1, 1), (512, 256, 1, 1)]


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ValueError, match=r"no model is called 'gpt-2': did you mean gpt2\?"):
        check_models(["small", "gpt-2"])
