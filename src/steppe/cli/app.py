"""The commands under one name."""

from typing import Annotated

import typer

import steppe
from steppe.bench.command import bench
from steppe.compare.card import profile
from steppe.compare.command import compare, doctor
from steppe.compare.report_command import report
from steppe.compare.worker_command import worker
from steppe.figures.command import figure
from steppe.play.command import play

app = typer.Typer(
    help="Optimizers for flat minima, whether they help, and what they cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (compare, worker, report, profile, play, figure, bench, doctor):
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
