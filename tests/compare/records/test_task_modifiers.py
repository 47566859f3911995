"""The names of a task's modifiers: one spelling for one task, and refusals that list what is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppe.compare.records.choices import check_task, directory_of
from steppe.compare.records.task_modifiers import (
    MODIFIERS,
    Modifier,
    base_of,
    parse_task,
    spelled,
    with_modifiers,
)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("digits", "digits"),
        ("digits+noise40", "digits+noise40"),
        ("digits+noise040.0", "digits+noise40"),
        ("digits+noise40-seed0", "digits+noise40"),
        ("digits+noise33.3-seed7", "digits+noise33.3-seed7"),
        ("digits+noise40+few250", "digits+few250+noise40"),
        ("digits+long4+batch8+noise40+few250", "digits+few250+noise40+batch8+long4"),
        ("a.b:task+long2", "a.b:task+long2"),
        ("c++/my+task.py:task+long2", "c++/my+task.py:task+long2"),
    ],
)
def test_a_task_has_one_spelling(typed: str, meant: str) -> None:
    assert spelled(typed) == meant
    assert spelled(meant) == meant


def test_a_name_is_split_after_the_path() -> None:
    base, (few, noise) = parse_task("c++/my.py:task+noise2.5-seed3+few9")
    assert base == base_of("c++/my.py:task+noise2.5-seed3+few9") == "c++/my.py:task"
    assert (few, noise) == (Modifier("few", 9), Modifier("noise", 2.5, seed=3))


def test_a_percentage_is_the_same_number_however_it_was_computed() -> None:
    assert 100 * 0.07 != 7
    assert Modifier("noise", 100 * 0.07) == Modifier("noise", 7)


@given(st.floats(1e-9, 99.9), st.integers(0, 10**9 - 1))
def test_a_name_is_read_as_the_modifier_that_it_was_made_of(amount: float, seed: int) -> None:
    modifier = Modifier("noise", amount, seed)
    assert parse_task(with_modifiers("digits", [modifier])) == ("digits", (modifier,))


def test_the_examples_are_modifiers() -> None:
    for kind, described in MODIFIERS.items():
        ((modifier,), name) = (parse_task(f"digits+{described.example}")[1], described.example)
        assert (modifier.kind, str(modifier)) == (kind, name)


THERE_ARE = "There are batch1024, few250, long4, noise40, shift3$"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "digits+nosie40",
            f"no task modifier is called 'nosie40': did you mean noise40. {THERE_ARE}",
        ),
        ("digits+", f"no task modifier is called '': {THERE_ARE}"),
        ("digits+Noise40", f"no task modifier is called 'Noise40': .*{THERE_ARE}"),
        ("digits+40", f"no task modifier is called '40': .*{THERE_ARE}"),
        ("a.py:task+sam", f"no task modifier is called 'sam': .*{THERE_ARE}"),
        (
            "digits+noise0",
            r"noise must be a percentage above 0 and below 100, as \+noise40, .*noise0$",
        ),
        ("digits+noise100", r"noise must be a percentage above 0 and below 100, .*got \+noise100$"),
        ("digits+noise", r"noise must be a percentage above 0 .*got \+noise$"),
        ("digits+noise-4", r"noise must be a percentage above 0 .*got \+noise-4$"),
        ("digits+noise40-seed1000000000", "seed of noise must be at most 999999999, got .noise40"),
        ("digits+noise40-seed" + "1" * 5000, "the seed of noise must be at most 999999999"),
        ("digits+noise40-seedx", r"noise must be .*, then -seed1 .*got \+noise40-seedx$"),
        ("digits+few0", r"few must be a whole number from 2 to .*, as \+few250, got \+few0$"),
        ("digits+few1", r"few must be a whole number from 2 .*got \+few1$"),
        ("digits+few2.5", r"few must be a whole number from 2 .*got \+few2.5$"),
        ("digits+few250-seed1", r"few must be .*, as \+few250, got \+few250-seed1$"),
        (f"digits+few{'9' * 400}", "few must be a whole number from 2 to 1000000000"),
        (
            "digits+batch0",
            r"batch must be a whole number from 1 to .*, as \+batch1024, got \+batch0$",
        ),
        ("digits+long1", r"long must be a whole number from 2 to .*, as \+long4, got \+long1$"),
        ("digits+noise40+noise20", r"noise must be given once, got \+noise40 and \+noise20"),
        ("digits+few9+few9", r"few must be given once, got \+few9 and \+few9"),
        ("digts+noise40", "no task is called 'digts': did you mean digits"),
        ("mytask.py+noise40", "mytask.py may have several tasks: name one, as mytask.py:task"),
    ],
)
def test_what_is_no_modifier_is_refused_with_what_there_is(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_task(name)


def test_a_modified_task_has_a_directory_of_its_own() -> None:
    names = ["digits", "digits+noise40", "digits+noise40-seed1", "digits+few40", "mytask.py:task"]
    names += ["mytask.py:task+noise40", "mytask.py:other+noise40", "mytask.py:other"]
    assert len({directory_of(name) for name in names}) == len(names)
    assert directory_of("work/mytask.py:task+few9+noise40") == "mytask+few9+noise40"
