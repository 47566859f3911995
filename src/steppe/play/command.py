"""The command ``steppe play``."""

import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from steppe._shared.cli_options import AT_LEAST_ONE, NAMES, OUTPUT, Open, group, limited
from steppe._shared.console import make_console, refusals
from steppe._shared.hyperparameters import PUBLISHED_RHO, PUBLISHED_SWITCH
from steppe._shared.progress import progress
from steppe.functions import FUNCTIONS
from steppe.play.animation import KINDS, animate, check_kind
from steppe.play.descent import SCHEDULES
from steppe.play.page import write_page
from steppe.play.pictures import plot_losses, plot_paths
from steppe.play.report import report
from steppe.play.results import SweepResult
from steppe.play.sweep import plan

_DEFAULT = ("adam", "dualadam-scale-free", "adamcm", "adam+sam")
_FUNCTIONS = ", ".join(FUNCTIONS)
_OPTIMIZERS = group("Optimizers", 10)
_DESCENT = group("Descent", 20)
_WITH_COMMAS = Parameter(show_default=",".join)
# A start may begin with a minus sign.
_REPEATED = Parameter(negative="", allow_leading_hyphen=True)


def play(
    function: Annotated[str, Parameter(help=f"{_FUNCTIONS}.")],
    /,
    *,
    optimizers: Annotated[Sequence[str], _OPTIMIZERS, NAMES, _WITH_COMMAS] = _DEFAULT,
    lr: Annotated[str, _OPTIMIZERS, Parameter(metavar="X,X…")] = "0.01,0.1,1",
    schedule: Annotated[str, _OPTIMIZERS, Parameter(choices=SCHEDULES)] = "cosine",
    switch: Annotated[float, _OPTIMIZERS] = PUBLISHED_SWITCH,
    rho: Annotated[float, _OPTIMIZERS] = PUBLISHED_RHO,
    steps: Annotated[int, _DESCENT, limited(AT_LEAST_ONE)] = 300,
    starts: Annotated[int, _DESCENT, limited(AT_LEAST_ONE)] = 10,
    start: Annotated[list[str] | None, _DESCENT, _REPEATED, Parameter(metavar="X,Y")] = None,
    parameters: Annotated[
        list[str] | None, _DESCENT, _REPEATED, Parameter("--set", metavar="NAME=VALUE")
    ] = None,
    noise: Annotated[float, _DESCENT] = 0.0,
    seed: Annotated[int, _DESCENT] = 0,
    animation: Annotated[str, OUTPUT, Parameter(choices=KINDS)] = "gif",
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
        Names with commas between, as steppe compare takes them. The steps of DualAdam and InvAdam
        grow with the square of the gradient, which is large on most of these functions; those of
        dualadam-scale-free do not.
    lr
        Learning rates with commas between. Every optimizer runs all of them, and is shown at its
        own best by median final loss.
    schedule
        Schedule of lr, the same for all. cosine falls to 0: critical momenta settle then too; at a
        constant lr they mostly circle around the minimum.
    switch
        Share of the run after which DualAdam has switched (1/ξ).
    rho
        SAM's radius.
    steps
        Steps of every run.
    starts
        Number of starts, drawn evenly from the function's domain.
    start
        A start of your own, instead; may be repeated.
    parameters
        A parameter of the function, such as condition_number=1000 of quadratic, sharpness=50 of
        sharp-flat, dimension=5 of ackley; may be repeated.
    noise
        Standard deviation of Gaussian noise in each gradient component.
    seed
        Seed of the starts and the noise.
    animation
        Format of the animation; mp4 needs ffmpeg.
    out_dir
        Directory of all files. Default: results/play/FUNCTION.

    Examples
    --------
    Critical momenta on a function of many minima:

        steppe play ackley --optimizers adam,adamcm --open

    Two starts of your own on an ill-conditioned bowl:

        steppe play quadratic --set condition_number=1000 --start 1,-2 --start 0.5,0.5
    """
    with refusals():
        check_kind(animation)
        match = plan(
            function,
            optimizers=list(optimizers),
            rates=_numbers("lr", lr),
            steps=steps,
            starts=[_numbers("start", each) for each in start or []],
            drawn=starts,
            parameters=dict(_parameter(each) for each in parameters or []),
            switch=switch,
            rho=rho,
            schedule=schedule,
            noise=noise,
            seed=seed,
        )
        out = out_dir or Path("results", "play", function)
        out.mkdir(parents=True, exist_ok=True)
        with progress("Descents", len(match.recipes) * len(match.rates)) as advance:
            played = match.run(advance)
    with refusals():
        _show(played, out, animation)
    if show:
        webbrowser.open((out / "play.html").resolve().as_uri())


def _show(played: SweepResult, out: Path, animation: str) -> None:
    """Write all files, then print; if one cannot be written, the table is printed all the same."""
    console = make_console()
    try:
        written = _write(played, out, animation)
    finally:
        report(console, played)
    console.print()
    for path in written:
        console.print(f"Written: {path}", soft_wrap=True, highlight=False, markup=False)


def _write(played: SweepResult, out: Path, animation: str) -> list[Path]:
    """Write all files; return where they are."""
    written = [out / "play.json", out / "losses.png", out / "play.html"]
    played.save(written[0])
    plot_losses(played, written[1])
    write_page(played, written[2])
    if played.function.dimension > 2:
        return written
    plot_paths(played, out / "paths.png")
    written.append(out / "paths.png")
    if animation != "none":
        animate(played, out / f"paths.{animation}")
        written.append(out / f"paths.{animation}")
    return written


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
