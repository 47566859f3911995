"""The flat and the sharp minimum: curvatures, barrier, positions and joints are as promised."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steppe.functions import sharp_flat

POSITIVE = st.floats(1e-2, 1e3)


def at(x: float) -> torch.Tensor:
    return torch.tensor([x], dtype=torch.float64)


@given(sharpness=POSITIVE, flatness=POSITIVE, barrier=POSITIVE, saddle=POSITIVE)
def test_it_is_what_it_says(
    sharpness: float, flatness: float, barrier: float, saddle: float
) -> None:
    f = sharp_flat(sharpness, flatness, barrier, saddle)
    (flat,), (sharp,) = f.flat.point, f.sharp.point
    assert flat < f.joints[0] < f.top < f.joints[1] < sharp
    for curvature, place in ((flatness, flat), (sharpness, sharp), (-saddle, f.top)):
        assert f.hessian(at(place)).item() == curvature
        assert f.gradient(at(place)).item() == pytest.approx(0, abs=1e-9)
    assert f(at(flat)).item() == f(at(sharp)).item() == 0
    assert f(at(f.top)).item() == barrier
    for curvature, place, joint in (
        (flatness, flat, f.joints[0]),
        (sharpness, sharp, f.joints[1]),
    ):
        distance = math.sqrt(2 * barrier * (curvature + saddle) / (curvature * saddle))
        assert abs(place) == pytest.approx(distance)
        assert abs(place - joint) == pytest.approx(distance * saddle / (curvature + saddle))
        # Both parabolas have the same height and slope there.
        well, top = place - joint, joint - f.top
        assert curvature * well**2 / 2 == pytest.approx(
            barrier - saddle * top**2 / 2, abs=1e-9 * barrier
        )
        assert curvature * well == pytest.approx(saddle * top)


@pytest.mark.parametrize("side", [0, 1])
def test_value_and_slope_are_continuous_at_the_joints_and_curvature_jumps(side: int) -> None:
    f = sharp_flat(20.0, 0.5, 2.0, 3.0)
    joint = f.joints[side]
    before, after = at(math.nextafter(joint, -9)), at(math.nextafter(joint, 9))
    torch.testing.assert_close(f(before), f(after), rtol=0, atol=1e-13)
    torch.testing.assert_close(f.gradient(before), f.gradient(after), rtol=0, atol=1e-13)
    curvatures = {f.hessian(before).item(), f.hessian(after).item()}
    assert curvatures == {-3.0, (0.5, 20.0)[side]}


def test_the_wells_go_on_outside_and_the_domain_ends_two_barriers_high() -> None:
    f = sharp_flat(barrier=1.5)
    ((low, high),) = f.bounds
    assert f(at(low)).item() == pytest.approx(3.0)
    assert f(at(high)).item() == pytest.approx(3.0)
    assert f(at(high + 1.0)).item() == pytest.approx(50 * (high + 1 - f.sharp.point[0]) ** 2)


def test_between_the_minima_the_top_is_the_highest_point() -> None:
    f = sharp_flat()
    (flat,), (sharp,) = f.flat.point, f.sharp.point
    x = torch.linspace(flat, sharp, 10_001, dtype=torch.float64)[:, None]
    assert f(x).max() <= 1.0
    assert x[f(x).argmax()].item() == pytest.approx(f.top, abs=1e-3)
