"""Measure and draw figures: ``python -m figures NAME``, from the checkout's root."""

import sys

from figures.command import figure
from steppe._shared.console import add_command, make_app, run_app

app = make_app("python -m figures")
add_command(app, figure)

if __name__ == "__main__":
    run_app(app, sys.argv[1:])
