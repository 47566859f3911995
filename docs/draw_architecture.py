"""Draw the two pictures of docs/architecture.md: the rooms of the package, and one step.

``python docs/draw_architecture.py`` reads the imports of src/steppe and rewrites
docs/images/architecture-rooms.svg and docs/images/architecture-step.svg. Rooms, sizes and arrows
are what the source has on the day; nothing of them is written here.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from itertools import combinations, permutations, product
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "steppe"
IMAGES = ROOT / "docs" / "images"
#: Every room may use it, so arrows to it would hide the others.
SHARED = "_shared"

# Tints of Okabe and Ito's colours, which colour-blind readers tell apart; the text says all.
TINTS = {"public": "#D7EBF7", "private": "#FBEBCB", "rules": "#CFEBE0"}
INK, FAINT = "#222222", "#555555"
CODE = "DejaVu Sans Mono"
TOP = {"color": INK, "va": "top"}
FAINT_TOP = {"color": FAINT, "va": "top"}
BESIDE: dict[str, Any] = {"color": INK, "va": "center", "fontsize": 9.5, "linespacing": 1.25}

Arrow = tuple[str, str]
_MODULE = r"steppe(\.\w+)+(:\w+)?"


# What there is: rooms, their sizes, and who imports whom


def files(room: str) -> list[Path]:
    """Return the modules of a room, which is a folder of the package or a single module."""
    single = SOURCE / f"{room}.py"
    return [single] if single.exists() else sorted((SOURCE / room).rglob("*.py"))


@cache
def rooms() -> tuple[str, ...]:
    """Return the rooms: the folders of the package, and ``rules``."""
    folders = [path.parent.name for path in SOURCE.glob("*/__init__.py")]
    return tuple(sorted([*folders, "rules"]))


def lines(room: str) -> int:
    """Return how many lines of Python a room has."""
    return sum(len(path.read_text().splitlines()) for path in files(room))


def parts(room: str) -> list[str]:
    """Return the folders inside a room."""
    return sorted(path.parent.name for path in SOURCE.glob(f"{room}/*/__init__.py"))


def purpose(room: str) -> str:
    """Return the first sentence of a room's docstring."""
    first = next(path for path in files(room) if path.stem in ("__init__", room))
    text = ast.get_docstring(ast.parse(first.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".").replace("``", "")


def imports(room: str) -> set[str]:
    """Return the other rooms that a room imports."""
    trees = (ast.parse(path.read_text()) for path in files(room))
    found = {name for tree in trees for name in _imported(tree)}
    return found & set(rooms()) - {room}


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (_room(f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (_room(alias.name) for alias in node.names)
        elif isinstance(node, ast.Constant) and re.fullmatch(_MODULE, str(node.value)):
            # A command names the module that is imported when it is called.
            yield _room(node.value)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield _room(f"{node.value.id}.{node.attr}")


def _room(name: str) -> str:
    """Return the room of a name: what the package itself offers, but for rooms, is ``optim``'s."""
    package, _, rest = name.partition(".")
    if package != "steppe" or not rest or rest.startswith("__"):
        return ""
    first = re.split(r"[.:]", rest)[0]
    return "optim" if first[0].isupper() else first


@cache
def arrows() -> frozenset[Arrow]:
    """Return who imports whom, without ``_shared`` and without what follows from other arrows."""
    direct = {room: imports(room) - {SHARED} for room in rooms() if room != SHARED}
    beyond = {room: set().union(*(_reached(direct, x) for x in direct[room])) for room in direct}
    return frozenset((room, x) for room in direct for x in direct[room] - beyond[room])


def _reached(direct: dict[str, set[str]], room: str) -> set[str]:
    return direct[room].union(*(_reached(direct, x) for x in direct[room]))


# Where rooms stand


def levels() -> dict[str, int]:
    """Return each room's floor: right below the lowest that imports it."""
    below = {room: {b for a, b in arrows() if a == room} for room in rooms() if room != SHARED}
    above = {room: {a for a, b in arrows() if b == room} for room in below}

    def height(room: str) -> int:
        return max((1 + height(x) for x in below[room]), default=0)

    def floor(room: str) -> int:
        return min((floor(x) - 1 for x in above[room]), default=height(room))

    return {room: floor(room) for room in below}


def columns(floors: dict[str, int]) -> dict[str, float]:
    """Return where on its floor each room stands, so that arrows neither cross nor hide rooms."""
    by_floor = [[r for r in floors if floors[r] == level] for level in sorted({*floors.values()})]
    width = max(3, *map(len, by_floor))
    choices = [permutations(range(width), len(row)) for row in by_floor]
    found = (
        {
            room: float(x)
            for row, xs in zip(by_floor, places, strict=True)
            for room, x in zip(row, xs, strict=True)
        }
        for places in product(*choices)
    )
    return min(found, key=lambda places: _disorder(places, floors))


def _disorder(x: dict[str, float], floors: dict[str, int]) -> tuple[int, float]:
    pairs = combinations(sorted(arrows()), 2)
    crossings = sum(
        _cross((x[a], floors[a], x[b], floors[b]), (x[c], floors[c], x[d], floors[d]))
        for (a, b), (c, d) in pairs
        if not {a, b} & {c, d}
    )
    hidden = sum(
        abs(x[a] + (x[b] - x[a]) * (floors[a] - floors[r]) / (floors[a] - floors[b]) - x[r]) < 0.5
        for a, b in arrows()
        for r in floors
        if floors[b] < floors[r] < floors[a]
    )
    return crossings + hidden, sum((x[a] - x[b]) ** 2 for a, b in arrows())


def _cross(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    """Whether two lines, each from an upper to a lower end, cross."""
    top = min(first[1], second[1])
    bottom = max(first[3], second[3])
    if top <= bottom:
        return False

    def at(line: tuple[float, ...], y: float) -> float:
        return line[0] + (line[2] - line[0]) * (line[1] - y) / (line[1] - line[3])

    return (at(first, top) - at(second, top)) * (at(first, bottom) - at(second, bottom)) <= 0


# The pictures


def draw_rooms() -> Figure:
    """Draw the rooms, those above importing those below."""
    floors = levels()
    x = columns(floors)
    across, up, wide, high = 3.7, 1.85, 3.35, 1.35
    figure, axes = _canvas(across * (max(x.values()) + 1), up * (max(floors.values()) + 1) + 1.1)
    at = {room: (across * x[room] + 0.18, 1.5 + up * floors[room]) for room in floors}
    for upper, lower in sorted(arrows()):
        (left, bottom), (goal, below) = at[upper], at[lower]
        # An arrow past another floor leaves at the box's edge, so that it keeps clear of that one.
        lean = wide / 2 - 0.12 if floors[upper] - floors[lower] > 1 else 0.8
        side = (goal > left) - (goal < left)
        start = left + wide / 2 + side * lean
        end = goal + wide / 2 - side * (0.0 if lean > 1 else lean)
        _arrow(axes, (start, bottom), (end, below + high), gid=f"arrow-{upper}-{lower}")
    for room, corner in at.items():
        _draw_room(axes, room, corner, wide, high)
    all_columns = across * max(x.values()) + wide
    _draw_room(axes, SHARED, (0.18, 0.15), all_columns, 1.05)
    return figure


def _draw_room(
    axes: Axes, room: str, corner: tuple[float, float], wide: float, high: float
) -> None:
    _box(axes, corner, wide, high, _tint(room), gid=f"room-{room}")
    left, top = corner[0] + 0.12, corner[1] + high - 0.12
    name = "rules.py" if room == "rules" else f"{room}/"
    axes.text(left, top, name, fontfamily=CODE, fontsize=13, weight="bold", **TOP)
    size = f"{lines(room):,} lines".replace(",", "\u2009")
    axes.text(corner[0] + wide - 0.12, top - 0.02, size, fontsize=9.5, ha="right", **FAINT_TOP)
    about = purpose(room)
    if room == SHARED:
        users = sorted(x for x in rooms() if x != SHARED and SHARED in imports(x))
        about += f". Imported by {', '.join(users)}; their arrows are left out"
    folders = wrap("  ".join(f"{part}/" for part in parts(room)), int(wide * 11))
    fit = 3 if len(folders) < 2 and room != SHARED else 2
    body = wrap(about, int(wide * 12.4), max_lines=fit, placeholder=" …")
    axes.text(left, top - 0.32, "\n".join(body), fontsize=9.5, linespacing=1.2, **TOP)
    bottom = corner[1] + 0.1
    small: dict[str, Any] = {"fontfamily": CODE, "fontsize": 7.6, "color": FAINT, "va": "bottom"}
    axes.text(left, bottom, "\n".join(folders), **small)


def _tint(room: str) -> str:
    return TINTS["rules" if room.startswith("rules") else "private" if room[0] == "_" else "public"]


#: The stations of a step: place, call, what it does, and what it hands on to the next.
STEP = (
    (
        "optim/",
        "optimizer.step()",
        "checks all gradients, makes the state that is missing,\n"
        "and sorts parameters into batches: a plan, kept as long as it fits",
        "plan: batches of parameters that share a method, number formats and a\n"
        "device; of each its values, gradient, state and options",
    ),
    (
        "_engines/dispatch.py",
        "step(plan)",
        "chooses an engine for each batch, counts the step, and has the\n"
        "norm of all gradients taken where a method needs it",
        "one batch, and the norms",
    ),
    (
        "_engines/cpu/  gpu/  eager/",
        "engine.step(batch, norms)",
        "Numba element by element, Triton block by block, or torch on whole\n"
        "tensors: loads numbers, calls the rule, rounds and stores what it returns",
        "",
    ),
    (
        "rules.py",
        "dual_adam(p, g, m, v, lr, …)",
        "pure arithmetic, written once for all engines; it knows no tensor,\n"
        "no number format and no thread",
        "",
    ),
)


def draw_step() -> Figure:
    """Draw one optimizer step on its way down through the rooms, and back."""
    wide, high, gap = 5.6, 1.15, 0.8
    figure, axes = _canvas(wide + 2.9, len(STEP) * (high + gap) - gap + 0.3)
    bottoms = [0.15 + (len(STEP) - 1 - i) * (high + gap) for i in range(len(STEP))]
    middle, right = 0.15 + wide / 2, 0.15 + wide
    for i, ((place, call, does, hands_on), bottom) in enumerate(zip(STEP, bottoms, strict=True)):
        _box(axes, (0.15, bottom), wide, high, _tint(place), gid=f"station-{i}")
        top = bottom + high - 0.13
        axes.text(0.3, top, place, fontfamily=CODE, fontsize=12, weight="bold", **TOP)
        axes.text(right - 0.15, top - 0.02, call, fontfamily=CODE, fontsize=9, ha="right", **TOP)
        axes.text(0.3, top - 0.38, does, fontsize=10, linespacing=1.3, **TOP)
        if hands_on:
            _arrow(axes, (0.6, bottom), (0.6, bottom - gap))
            axes.text(0.75, bottom - gap / 2, hands_on, **BESIDE)
    bottom = bottoms[-2]
    _arrow(axes, (0.6, bottom), (0.6, bottom - gap))
    axes.text(0.75, bottom - gap / 2, "numbers: p, g, state,\nand scalars: lr, β, …", **BESIDE)
    _arrow(axes, (middle + 0.5, bottom - gap), (middle + 0.5, bottom))
    returned = "new p, new state,\nand what to remember"
    axes.text(middle + 0.65, bottom - gap / 2, returned, **BESIDE)
    turn, down, up = right + 0.35, bottom + high / 2, bottoms[0] + high / 2
    axes.plot([right, turn, turn], [down, down, up], color=INK, lw=1.2)
    _arrow(axes, (turn, up), (right, up))
    in_place = (
        "nothing is returned:\nparameters and state\nhave changed in place,\neach of them once"
    )
    axes.text(turn + 0.15, (down + up) / 2, in_place, **BESIDE)
    return figure


def _canvas(wide: float, high: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(wide, high), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, wide), ylim=(0, high), aspect="equal")
    axes.axis("off")
    return figure, axes


def _box(
    axes: Axes, corner: tuple[float, float], wide: float, high: float, tint: str, gid: str
) -> None:
    style = "round,pad=0,rounding_size=0.08"
    box = FancyBboxPatch(corner, wide, high, boxstyle=style, fc=tint, ec=INK, lw=1, zorder=2)
    box.set_gid(gid)
    axes.add_patch(box)


def _arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], gid: str | None = None
) -> None:
    look: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 13, "shrinkA": 0, "shrinkB": 1}
    arrow = FancyArrowPatch(start, end, color=INK, lw=1.2, zorder=1, **look)
    if gid:
        arrow.set_gid(gid)
    axes.add_patch(arrow)


def save(folder: Path = IMAGES) -> None:
    """Write the pictures: letters as paths, which need no fonts, and no date."""
    figures = {"rooms": draw_rooms(), "step": draw_step()}
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "steppe"}):
        for name, figure in figures.items():
            figure.savefig(folder / f"architecture-{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    save()
