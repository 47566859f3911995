"""The command ``steppe play``."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from steppe._shared.cli_options import Open
from steppe._shared.console import make_console, refusals
from steppe._shared.hyperparameters import PUBLISHED_RHO, PUBLISHED_SWITCH
from steppe._shared.progress import progress
from steppe.functions import FUNCTIONS
from steppe.play.animation import animate, check_kind
from steppe.play.descent import SCHEDULES
from steppe.play.page import write_page
from steppe.play.pictures import plot_losses, plot_paths
from steppe.play.report import report
from steppe.play.results import SweepResult
from steppe.play.sweep import plan

_DEFAULT = "adam,dualadam-scale-free,adamcm,adam+sam"
_FUNCTIONS = ", ".join(FUNCTIONS)
_SCHEDULES = " or ".join(SCHEDULES)


def play(
    function: Annotated[str, typer.Argument(help=f"{_FUNCTIONS}.")],
    optimizers: Annotated[
        str,
        typer.Option(
            help="Names with commas between, as of steppe compare. DualAdam's and InvAdam's steps "
            "grow with the gradient's square, which is large on most of these functions: "
            "dualadam-scale-free's do not."
        ),
    ] = _DEFAULT,
    starts: Annotated[
        int, typer.Option(help="How many, drawn evenly from the function's domain.")
    ] = 10,
    start: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y", help="A start of your own, instead; may be repeated."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Of every run.")] = 300,
    lr: Annotated[
        str,
        typer.Option(
            help="Learning rates with commas between. Every optimizer runs all of them, and is "
            "shown at its own best by median final loss."
        ),
    ] = "0.01,0.1,1",
    schedule: Annotated[
        str,
        typer.Option(
            help=f"Of lr over the run, the same for all: {_SCHEDULES} (down to 0: critical momenta "
            "settle then too; at a constant lr they mostly go round the minimum)."
        ),
    ] = "cosine",
    noise: Annotated[
        float, typer.Option(help="Standard deviation of Gaussian noise in each gradient component.")
    ] = 0.0,
    switch: Annotated[
        float, typer.Option(help="Share of the run after which DualAdam has switched (1/ξ).")
    ] = PUBLISHED_SWITCH,
    rho: Annotated[float, typer.Option(help="SAM's radius.")] = PUBLISHED_RHO,
    parameters: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A parameter of the function, such as condition_number=1000 of quadratic, "
            "sharpness=50 of sharp-flat, dimension=5 of ackley; may be repeated.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the starts and the noise.")] = 0,
    animation: Annotated[str, typer.Option(help="gif, mp4 (needs ffmpeg), or none.")] = "gif",
    out: Annotated[
        Path | None, typer.Option(help="Directory of all files. Default: results/play/FUNCTION.")
    ] = None,
    show: Open = False,
) -> None:
    """Let optimizers descend on a test function whose minima are known, and look at it.

    All start from the same places. It prints where they ended, and writes paths.png, losses.png,
    paths.gif, play.html (to be turned and explored in a browser) and play.json. Functions of more
    than two variables have no landscape to draw: of them there are the losses only.
    """
    with refusals():
        check_kind(animation)
        match = plan(
            function,
            optimizers=optimizers.split(","),
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
        out = Path("results", "play", function) if out is None else out
        out.mkdir(parents=True, exist_ok=True)
        with progress("Descents", len(match.recipes) * len(match.rates)) as advance:
            played = match.run(advance)
    console = make_console()
    report(console, played)
    with refusals():
        console.print()
        for path in _write(played, out, animation):
            console.print(f"Written: {path}", soft_wrap=True, highlight=False, markup=False)
    if show:
        webbrowser.open((out / "play.html").resolve().as_uri())


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
