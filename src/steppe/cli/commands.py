"""The commands of ``steppe``: where each is, and what it does in one line.

The lines stand here and not with the functions, so that ``steppe --help`` imports none of them: it
works in the core install and takes 0.06 s, where torch alone takes seconds.
A test holds that each line is the first one of its function's docstring.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes
    ----------
    module, function : str
        Where it is.
    summary : str
        What it does.
    """

    module: str
    function: str
    summary: str

    def load(self) -> Callable[..., Any]:
        """Import the command's function."""
        found: Callable[..., Any] = getattr(import_module(self.module), self.function)
        return found


COMMANDS = {
    "compare": Command(
        "steppe.compare",
        "compare_command",
        "Compare what optimizers are worth when tuned alike, and say which differences are real.",
    ),
    "worker": Command(
        "steppe.compare",
        "worker_command",
        "Join a study that steppe compare has planned, on this machine or any other.",
    ),
    "report": Command(
        "steppe.compare",
        "report_command",
        "Print a study's results, and write them as one self-contained page.",
    ),
    "profile": Command(
        "steppe.compare",
        "profile_command",
        "Measure the curvature of the loss where a run ended, print it, and draw it.",
    ),
    "play": Command(
        "steppe.play.command",
        "play",
        "Let optimizers descend on a test function whose minima are known, and draw it.",
    ),
    "bench": Command(
        "steppe.bench.command",
        "bench",
        "Time optimizers' steps against torch's fused AdamW and the memory's speed.",
    ),
    "doctor": Command(
        "steppe.cli.doctor",
        "doctor",
        "Print versions, devices, and which engine each optimizer would use.",
    ),
}


def overview() -> str:
    """Return the help of ``steppe`` itself.

    Examples
    --------
    >>> print(overview().partition("Commands")[0].rstrip())
    Usage: steppe COMMAND [OPTIONS]
    <BLANKLINE>
    Optimizers for flat minima, whether they help, and what they cost.
    """
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "Usage: steppe COMMAND [OPTIONS]",
            "",
            "Optimizers for flat minima, whether they help, and what they cost.",
            "",
            "Commands:",
            *lines,
            "",
            "Options:",
            "  --help                Print this, or after a command its options and examples.",
            "  --version             Print the version.",
            "  --install-completion  Let bash, zsh or fish complete commands and options.",
        ]
    )
