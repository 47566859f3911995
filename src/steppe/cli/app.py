"""The commands under one name."""

from typing import Annotated

import typer

import steppe
from steppe._shared.console import make_console
from steppe.bench.command import bench
from steppe.cli.doctor import print_doctor
from steppe.compare.cli.compare import compare
from steppe.compare.cli.profile import profile
from steppe.compare.cli.report import report
from steppe.compare.cli.worker import worker
from steppe.play.command import play


def doctor() -> None:
    """Print versions, devices, and which engine each optimizer would use."""
    print_doctor(make_console())


app = typer.Typer(
    help="Optimizers for flat minima, whether they help, and what they cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (compare, worker, report, profile, play, bench, doctor):
    app.command()(command)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"steppe {steppe.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    pass
