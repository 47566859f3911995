"""Measure and draw figures: ``python -m figures NAME``, from the checkout's root."""

import typer

from figures.command import figure

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(figure)

if __name__ == "__main__":
    app(prog_name="python -m figures")
