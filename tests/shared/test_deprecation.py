"""A deprecated name works, and says once a call what takes its place and until when."""

import warnings

import pytest

from steppe._shared.deprecation import deprecated, renamed_argument

WHEN = {"since": "0.3", "removed_in": "0.5"}


@deprecated(**WHEN, use="steppe.area")
def surface(side: float) -> float:
    """Return the area of a square."""
    return side**2


@deprecated(**WHEN, use="steppe.Shape")
class Figure:
    """A figure of so many sides."""

    def __init__(self, sides: int) -> None:
        self.sides = sides


@renamed_argument("width", "side", **WHEN)
def area(side: float, *, scale: float = 1.0) -> float:
    """Return the area of a square."""
    return scale * side**2


def test_a_deprecated_function_warns_where_it_is_called() -> None:
    expected = "surface is deprecated since steppe 0.3 and will be removed in 0.5: use steppe.area"
    with pytest.warns(FutureWarning) as caught:
        assert surface(3.0) == 9.0
    (warning,) = caught
    assert str(warning.message) == expected
    assert warning.filename == __file__
    assert (surface.__name__, surface.__doc__) == ("surface", "Return the area of a square.")


def test_a_deprecated_class_warns_for_instances_and_subclasses() -> None:
    with pytest.warns(FutureWarning, match=r"^Figure is .* 0\.3 .* 0\.5: use steppe\.Shape$"):
        figure = Figure(4)
    assert figure.sides == 4
    assert isinstance(figure, Figure)
    with pytest.warns(FutureWarning, match="Figure is deprecated"):

        class Square(Figure):
            """A figure of four sides."""

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Square(4).sides == 4


def test_an_argument_is_taken_by_its_old_name() -> None:
    expected = "area: width= is deprecated since steppe 0.3 and will be removed in 0.5: use side="
    with pytest.warns(FutureWarning) as caught:
        assert area(width=3.0, scale=2.0) == 18.0
    (warning,) = caught
    assert str(warning.message) == expected
    assert warning.filename == __file__


def test_the_new_name_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert area(3.0) == area(side=3.0) == 9.0


@pytest.mark.parametrize(("positional", "named"), [((3.0,), {}), ((), {"side": 3.0})])
def test_both_names_are_refused(positional: tuple[float, ...], named: dict[str, float]) -> None:
    with pytest.raises(TypeError, match="area got both width= and side=: give side= only"):
        area(*positional, width=2.0, **named)


def test_an_argument_that_is_not_there_is_refused_when_decorating() -> None:
    rename = renamed_argument("width", "length", **WHEN)
    with pytest.raises(TypeError, match="must have an argument length, and none that is called"):
        rename(surface)
