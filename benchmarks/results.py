"""Write what committed studies come to into README and docs/, from their JSON and nothing else.

A block between ``<!-- steppe report docs/results/NAME.json -->`` and the end of the ``text`` fence
after it is what that command prints. Run ``python benchmarks/results.py`` after a study has been
saved anew with ``steppe report … --json docs/results/NAME.json``; with ``--check`` it only says
whether the pages are true.
"""

import io
import re
import sys
from functools import cache
from pathlib import Path

from rich.console import Console

from steppe.compare import Readings, load, print_report

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_BLOCK = re.compile(r"(<!-- steppe report (\S+)(.*?) -->\n```text\n).*?(```\n)", re.DOTALL)
_WIDTH = 100


@cache
def _readings(path: Path) -> Readings:
    """Read a study once, of which pages print several blocks."""
    return Readings(load(path).results)


def printed(path: Path, options: str) -> str:
    """Return what ``steppe report`` prints of a saved study, its page's place left out."""
    console = Console(width=_WIDTH, file=io.StringIO())
    readings = _readings(path)
    with console.capture() as capture:
        print_report(console, readings.results, brief="--brief" in options, readings=readings)
    lines = (line.rstrip() for line in capture.get().strip("\n").splitlines())
    return "\n".join(lines) + "\n"


def rewritten(page: str) -> str:
    """Return a page's text with its blocks as the files have them."""

    def block(found: re.Match[str]) -> str:
        head, source, options, tail = found.groups()
        return head + printed(ROOT / source, options) + tail

    return _BLOCK.sub(block, page)


def main() -> None:
    """Rewrite the pages, or check them."""
    stale = [page for page in PAGES if rewritten(page.read_text()) != page.read_text()]
    if "--check" in sys.argv[1:]:
        sys.exit(f"not what the files say: {', '.join(map(str, stale))}" if stale else 0)
    for page in stale:
        page.write_text(rewritten(page.read_text()))
        print(f"rewritten: {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
