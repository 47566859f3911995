"""The command ``steppe play``: it checks its arguments; :mod:`steppe.play.show` runs the sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from steppe._shared.cli_options import (
    AT_LEAST_ONE,
    FINITE_NOT_NEGATIVE,
    NAMES,
    NOT_NEGATIVE,
    OUTPUT,
    SHARE_ABOVE_ZERO,
    Open,
    group,
    limited,
)
from steppe._shared.console import refusals
from steppe._shared.hyperparameters import PUBLISHED_RHO, PUBLISHED_SWITCH
from steppe._shared.interrupts import ending_at_once
from steppe._shared.names import check_name
from steppe.play.options import ANIMATION_FORMATS, FUNCTION_NAMES, SCHEDULE_NAMES, check_numbers

_DEFAULT = ("adam", "dualadam-scale-free", "adamcm", "adam+sam")
_OPTIMIZERS = group("Optimizers", 10)
_DESCENT = group("Descent", 20)
_WITH_COMMAS = Parameter(show_default=",".join)
# A start may begin with a minus sign.
_REPEATED = Parameter(negative="", allow_leading_hyphen=True)


def play(
    function: Annotated[str, Parameter(help=f"What is minimised: {', '.join(FUNCTION_NAMES)}.")],
    /,
    *,
    optimizers: Annotated[Sequence[str], _OPTIMIZERS, NAMES, _WITH_COMMAS] = _DEFAULT,
    lr: Annotated[str, _OPTIMIZERS, Parameter(metavar="X,X…")] = "0.01,0.1,1",
    schedule: Annotated[str, _OPTIMIZERS, Parameter(choices=SCHEDULE_NAMES)] = "cosine",
    switch: Annotated[float, _OPTIMIZERS, limited(SHARE_ABOVE_ZERO)] = PUBLISHED_SWITCH,
    rho: Annotated[float, _OPTIMIZERS, limited(FINITE_NOT_NEGATIVE)] = PUBLISHED_RHO,
    steps: Annotated[int, _DESCENT, limited(AT_LEAST_ONE)] = 300,
    starts: Annotated[int, _DESCENT, limited(AT_LEAST_ONE)] = 10,
    start: Annotated[list[str] | None, _DESCENT, _REPEATED, Parameter(metavar="X,Y")] = None,
    parameters: Annotated[
        list[str] | None, _DESCENT, _REPEATED, Parameter("--set", metavar="NAME=VALUE")
    ] = None,
    noise: Annotated[float, _DESCENT, limited(FINITE_NOT_NEGATIVE)] = 0.0,
    seed: Annotated[int, _DESCENT, limited(NOT_NEGATIVE)] = 0,
    animation: Annotated[str, OUTPUT, Parameter(choices=ANIMATION_FORMATS)] = "gif",
    out_dir: Annotated[Path | None, OUTPUT, Parameter(metavar="DIR")] = None,
    show: Open = False,
) -> None:
    """Let optimizers descend on a test function whose minima are known, and draw it.

    All start from the same points. The command prints where they ended, and writes paths.png,
    losses.png, paths.gif, play.html (to be turned and explored in a browser) and play.json. A
    function of more than two variables has no surface to draw: only its losses are drawn.

    Parameters
    ----------
    optimizers
        Optimizers with commas between, named as for steppe compare. The steps of DualAdam and
        InvAdam grow with the square of the gradient, which is large on most of these functions;
        those of dualadam-scale-free do not.
    lr
        Learning rates with commas between. Every optimizer runs all of them, and is shown at its
        own best by median final loss.
    schedule
        Course of lr, the same for all. cosine falls to 0, so that critical momenta settle too; at a
        constant lr they mostly circle around the minimum.
    switch
        Share of the run after which DualAdam has switched (1/ξ).
    rho
        SAM's radius ρ.
    steps
        Number of steps of every run.
    starts
        Number of starting points, drawn uniformly from the function's domain.
    start
        Starting point to use instead of drawn ones; may be repeated.
    parameters
        A parameter of the function, such as condition_number=1000 of quadratic, sharpness=50 of
        sharp-flat, dimension=5 of ackley; may be repeated.
    noise
        Standard deviation of Gaussian noise in each gradient component.
    seed
        Seed of the starting points and the noise.
    animation
        Format of the animation; mp4 needs ffmpeg.
    out_dir
        Directory for all files. Default: results/play/FUNCTION.

    Examples
    --------
    Critical momenta on a function of many minima:

        steppe play ackley --optimizers adam,adamcm --open

    Two starts of your own on an ill-conditioned bowl:

        steppe play quadratic --set condition_number=1000 --start 1,-2 --start 0.5,0.5
    """
    with refusals(), ending_at_once():
        check_name("function", function, FUNCTION_NAMES)
        rates = _numbers("lr", lr)
        own_starts = [_numbers("start", each) for each in start or []]
        function_parameters = dict(_parameter(each) for each in parameters or [])
        check_numbers(rates, steps=steps, switch=switch, rho=rho, noise=noise, seed=seed)
        AT_LEAST_ONE.check("starts", starts)
        # Imported here because torch takes two seconds: help and misspelt options do without.
        from steppe.play.animation import check_format
        from steppe.play.show import run_and_report
        from steppe.play.sweep import plan_sweep

        check_format(animation)
        sweep = plan_sweep(
            function,
            optimizers=list(optimizers),
            rates=rates,
            steps=steps,
            starts=own_starts,
            drawn=starts,
            parameters=function_parameters,
            switch=switch,
            rho=rho,
            schedule=schedule,
            noise=noise,
            seed=seed,
        )
    out = out_dir or Path("results", "play", function)
    run_and_report(sweep, out, animation, show=show)


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} must be numbers with commas between, got {text!r}") from None


def _parameter(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"set must be NAME=VALUE with a number, got {text!r}") from None
    # A dimension is a whole number.
    return name.strip().replace("-", "_"), int(number) if number.is_integer() else number
