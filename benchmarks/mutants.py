"""How many small faults, drawn at random, the tests catch.

``python benchmarks/mutants.py draw`` draws them with cosmic-ray's operators and writes
``benchmarks/mutants.json``; ``run`` plants one after the other in a copy of the source and runs the
tests of its room, until one fails. A mutant is kept as the line that it changes, so that the same
set can be run against an older checkout with other files: ``run --tree ../older``.

It needs ``pip install cosmic-ray`` for ``draw`` alone. A mutant costs its room's tests where none
fails. ``pytest -n 2 --cov=steppe --cov-context=test`` in the checkout leaves a file ``.coverage``:
with ``run --reached .coverage`` those tests go first that reach the line, and most mutants take
seconds.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).parents[1]
DRAWN = ROOT / "benchmarks" / "mutants.json"
LIMIT_S = 900
#: So many of the tests that reach a line are tried before all of its room.
FIRST = 40

#: For each room: the files that mutants are drawn from (as globs under src/steppe), how many are
#: drawn, and the tests that are run against each. Tests that an older checkout lacks are left out.
ROOMS: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "rules": (("rules.py",), 22, ("tests/optim/test_reference.py", "tests/engines")),
    "engines": (
        ("_engines/base", "_engines/cpu", "_engines/eager", "_engines/dispatch.py"),
        40,
        ("tests/engines", "tests/optim"),
    ),
    "sam": (
        ("optim/sam.py", "optim/_sam*.py"),
        20,
        ("tests/optim/sam", "tests/distributed/test_accelerate_fsdp.py"),
    ),
    "study": (
        ("compare/planning", "compare/execution", "compare/training", "compare/records"),
        40,
        ("tests/compare",),
    ),
}

#: Functions that have another name now than when ``mutants.json`` was drawn.
RENAMED = {
    "design": "search_points",
    "followed": "followed_contender",
    "mixed": "hash_word",
    "rehearse": "check_trainable",
}


@dataclass(frozen=True)
class Mutant:
    """One fault: in which room and function, which lines it replaces, and by what."""

    room: str
    scope: str
    old: str
    new: str
    operator: str


@dataclass(frozen=True)
class MutableLine:
    """A line of a file, and the mutants it has: cosmic-ray's operators, and which occurrence."""

    path: Path
    number: int
    ways: tuple[tuple[str, int], ...]


def main() -> None:
    """Draw mutants, or run the tests against them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    drawing = commands.add_parser("draw", help="Draw mutants into benchmarks/mutants.json.")
    drawing.add_argument("--seed", type=int, default=17)
    drawing.add_argument("--also-in", type=Path, help="Keep those that this checkout has too.")
    drawing.set_defaults(call=lambda given: draw(given.seed, given.also_in))
    running = commands.add_parser("run", help="Run each room's tests against its mutants.")
    running.add_argument("--tree", type=Path, default=ROOT, help="The checkout to mutate.")
    running.add_argument("--out", type=Path, default=Path("results/mutants.json"))
    running.add_argument("--reached", type=Path, help="Which tests reach which line.")
    running.add_argument("--jobs", type=int, default=2, help="So many mutants at a time.")
    running.set_defaults(
        call=lambda given: run(given.tree.resolve(), given.out, given.reached, given.jobs)
    )
    given = parser.parse_args()
    given.call(given)


def draw(seed: int, also_in: Path | None) -> None:
    """Draw each room's number of mutants, and write them down."""
    generator = random.Random(seed)
    trees = [ROOT, *([also_in] if also_in else [])]
    drawn: list[Mutant] = []
    for room, (patterns, count, _) in ROOMS.items():
        # Lines first: an addition has eleven mutants, and would be drawn eleven times as often.
        lines = [line for path in _sources(patterns) for line in _mutable_lines(path)]
        generator.shuffle(lines)
        found = (_drawn(room, line, generator) for line in lines)
        kept = (m for m in found if m is not None and all(_find(tree, m) for tree in trees))
        drawn += islice(kept, count)
    text = json.dumps({"seed": seed, "mutants": [asdict(m) for m in drawn]}, indent=1)
    DRAWN.write_text(text + "\n", encoding="utf-8")
    print(f"{len(drawn)} mutants: {DRAWN}")


def _sources(patterns: tuple[str, ...]) -> Iterator[Path]:
    package = ROOT / "src" / "steppe"
    for pattern in patterns:
        for path in sorted(package.glob(pattern)):
            yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def _mutable_lines(path: Path) -> list[MutableLine]:
    """Return the lines within functions that cosmic-ray can change."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    source = path.read_text(encoding="utf-8")
    nodes, scopes = list(ast_nodes(get_ast(source))), _scopes(source)
    ways: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for name in sorted(operator_names()):
        operator = get_operator(name)
        if operator.arguments():
            continue
        starts = [start[0] for node in nodes for start, _ in operator().mutation_positions(node)]
        for occurrence, line in enumerate(starts):
            if line in scopes:
                ways[line].append((name, occurrence))
    return [MutableLine(path, line, tuple(found)) for line, found in sorted(ways.items())]


def _drawn(room: str, line: MutableLine, generator: random.Random) -> Mutant | None:
    """Return one of a line's mutants; None where it changes other lines too, or nothing."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = line.path.read_text(encoding="utf-8")
    name, occurrence = generator.choice(line.ways)
    before = source.splitlines()
    after = (mutate_code(source, get_operator(name)(), occurrence) or source).splitlines()
    if len(after) != len(before):
        return None
    changed = [i for i, pair in enumerate(zip(before, after, strict=True)) if len({*pair}) > 1]
    if changed != [line.number - 1]:
        return None
    scope = _scopes(source)[line.number]
    return Mutant(room, scope, before[line.number - 1], after[line.number - 1], name)


@cache
def _scopes(source: str) -> dict[int, str]:
    """Return the innermost function of each line, docstrings and signatures left out."""
    found: dict[int, str] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            for statement in body:
                for line in range(statement.lineno, (statement.end_lineno or 0) + 1):
                    found[line] = node.name
    return found


def _find(tree: Path, mutant: Mutant) -> tuple[Path, int] | None:
    """Return where a checkout has the mutant's line, if it has it once."""
    places, names = [], {mutant.scope, RENAMED.get(mutant.scope, mutant.scope)}
    for path in sorted((tree / "src" / "steppe").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if mutant.old not in source:
            continue
        scopes = _scopes(source)
        places += [
            (path, number)
            for number, line in enumerate(source.splitlines(), 1)
            if line == mutant.old and scopes.get(number) in names
        ]
    return places[0] if len(places) == 1 else None


def run(tree: Path, out: Path, reached: Path | None, jobs: int) -> None:
    """Plant each mutant in a copy of a checkout, run its room's tests, and write what came out."""
    drawn = [Mutant(**each) for each in json.loads(DRAWN.read_text(encoding="utf-8"))["mutants"]]
    done = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else []
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(jobs) as pool:
        free: Queue[Path] = Queue()
        ignored = shutil.ignore_patterns(".git", ".venv", ".coverage", "__pycache__", "results")
        for number in range(jobs):
            copy = Path(directory) / f"tree-{number}"
            shutil.copytree(tree, copy, ignore=ignored)
            free.put(copy)

        def came_out(mutant: Mutant) -> str:
            copy = free.get()
            try:
                return _plant(copy, mutant, reached)
            finally:
                free.put(copy)

        left = drawn[len(done) :]
        for mutant, what in zip(left, pool.map(came_out, left), strict=True):
            done.append({**asdict(mutant), "came_out": what})
            out.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
            print(len(done), what, mutant.room, mutant.scope, flush=True)
    for room in ROOMS:
        counts = Counter(each["came_out"] for each in done if each["room"] == room)
        print(f"{room}: " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items())))


def _plant(copy: Path, mutant: Mutant, reached: Path | None) -> str:
    """Return whether a test fails with the mutant in place: caught, too slow, survived, absent."""
    place = _find(copy, mutant)
    if place is None:
        return "absent"
    path, number = place
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    lines[number - 1] = mutant.new
    room = [each for each in ROOMS[mutant.room][2] if (copy / each).exists()]
    first = _reaching(reached, str(path.relative_to(copy)), number, room) if reached else []
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        # Of the first, 1 alone says that a test has failed: a name that pytest does not find is 4.
        if (first and _exit_code(copy, first) == 1) or _exit_code(copy, room):
            return "caught"
    except subprocess.TimeoutExpired:
        return "too slow"
    finally:
        path.write_text(source, encoding="utf-8")
    return "survived"


def _reaching(reached: Path, file: str, number: int, room: list[str]) -> list[str]:
    """Return tests of a room that reach a line, drawn from all that do if these are many."""
    from coverage import CoverageData

    data = CoverageData(str(reached))
    data.read()
    found: set[str] = set()
    for measured in data.measured_files():
        if measured.endswith("/" + file):
            found.update(data.contexts_by_lineno(measured).get(number, ()))
    tests = sorted({each.partition("|")[0] for each in found if each.startswith(tuple(room))})
    return random.Random(number).sample(tests, min(len(tests), FIRST))


def _exit_code(copy: Path, tests: list[str]) -> int:
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": f"{copy / 'src'}:{copy}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=LIMIT_S,
    )
    return done.returncode


if __name__ == "__main__":
    main()
