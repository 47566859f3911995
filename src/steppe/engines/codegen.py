"""Write the Numba kernels of a method to real files, so that Numba can cache them on disk."""

import hashlib
import importlib.util
import os
import sys
import tempfile
from functools import cache
from inspect import signature
from pathlib import Path
from types import ModuleType

import numba
import numpy as np

import steppe.engines.native
import steppe.rules
from steppe.engines.kernel import Kernel

_HEADER = '''"""The rule {rule} in {number}: written by steppe, may be deleted at any time."""

from numba import {number}, float64, njit, prange

from steppe.engines.native import SUMMING, array, compiled

rule = compiled("{rule}")
'''

_UPDATE = """
{helpers}

@njit(parallel=True, cache=True, error_model="numpy")
def update(addresses, slots, chunks, table):
    for chunk in prange(len(chunks)):
        row = chunks[chunk, 0]
        offset = chunks[chunk, 1] * {itemsize}
        size = chunks[chunk, 2]
{arrays}
{scalars}
{loops}
"""

_LOOP = """\
for i in range(size):
    {outputs} = rule({inputs})
"""

_LOOPS_WITH_BUFFER = """\
if slots[row] == 0:
    for i in range(size):
        {outputs}, item = rule({inputs})
else:
    slot = array(slots[row] + offset, size, {number})
    for i in range(size):
        {outputs}, item = rule({inputs})
        total[i] = swap(total[i], slot[i], item)
        slot[i] = item
"""

_SQUARES = """
square = compiled("{square}")


@njit(parallel=True, cache=True, fastmath=SUMMING, error_model="numpy")
def squares(addresses, chunks, table, sums):
    for chunk in prange(len(chunks)):
        row = chunks[chunk, 0]
        offset = chunks[chunk, 1] * {itemsize}
        size = chunks[chunk, 2]
{arrays}
{scalars}
        total = float64(0.0)
        for i in range(size):
            total += float64(square({inputs}))
        sums[chunk] = total
"""


@cache
def kernels(kernel: Kernel, number: str) -> ModuleType:
    """Return the module with a method's kernels.

    Parameters
    ----------
    kernel
        The method.
    number
        "float32" or "float64", of parameters, gradients and state.

    Returns
    -------
    module
        ``update(addresses, slots, chunks, table)`` and, for rules that ask for it,
        ``squares(addresses, chunks, table, sums)``.
    """
    text = _source(kernel, number)
    # What is inlined is not in the text, so Numba could not see that it has changed.
    inlined = [Path(str(module.__file__)) for module in (steppe.rules, steppe.engines.native)]
    parts = [text, numba.__version__, *(path.read_text() for path in inlined)]
    digest = hashlib.sha256("".join(parts).encode()).hexdigest()[:16]
    path = _directory() / f"steppe_{kernel.rule.__name__}_{number}_{digest}.py"
    if not path.exists():
        _write(path, text)
    return _load(path)


def _source(kernel: Kernel, number: str) -> str:
    names = {"number": number, "itemsize": np.dtype(number).itemsize}
    text = _HEADER.format(rule=kernel.rule.__name__, **names)
    has_buffer = kernel.buffer is not None
    arguments = list(signature(kernel.rule).parameters)
    tensors, scalars = _split(arguments, kernel)
    written = ["p", *tensors[2 : 2 + len(kernel.state)]]
    loop = (_LOOPS_WITH_BUFFER if has_buffer else _LOOP).format(
        outputs=", ".join(f"{name}[i]" for name in written),
        inputs=_inputs(arguments, tensors),
        **names,
    )
    pieces = {"arrays": _arrays(tensors, number), "scalars": _scalars(scalars, number)}
    helpers = 'swap = compiled("swap")\n' if has_buffer else ""
    text += _UPDATE.format(helpers=helpers, loops=_indented(loop), **pieces, **names)
    if kernel.mean_square is not None:
        arguments = list(signature(kernel.mean_square).parameters)
        tensors, scalars = _split(arguments, kernel)
        pieces = {"arrays": _arrays(tensors, number), "scalars": _scalars(scalars, number)}
        square, inputs = kernel.mean_square.__name__, _inputs(arguments, tensors)
        text += _SQUARES.format(square=square, inputs=inputs, **pieces, **names)
    return text


def _split(arguments: list[str], kernel: Kernel) -> tuple[list[str], list[str]]:
    """Tell a rule's tensors from its scalars."""
    count = 2 + len(kernel.state) + (kernel.buffer is not None)
    return arguments[:count], arguments[count:]


def _inputs(arguments: list[str], tensors: list[str]) -> str:
    values = {name: f"{name}[i]" for name in tensors} | {"g": "g[i] * sign"}
    return ", ".join(values.get(name, name) for name in arguments)


def _arrays(tensors: list[str], number: str) -> str:
    lines = [
        f"{name} = array(addresses[row, {i}] + offset, size, {number})"
        for i, name in enumerate(tensors)
    ]
    return _indented("\n".join(lines))


def _scalars(scalars: list[str], number: str) -> str:
    """Rows of the table hold the gradient's sign, then the rule's scalars."""
    lines = [f"{name} = {number}(table[row, {i}])" for i, name in enumerate(["sign", *scalars])]
    return _indented("\n".join(lines))


def _indented(text: str) -> str:
    return "\n".join(f"        {line}".rstrip() for line in text.splitlines())


@cache
def _directory() -> Path:
    """Return the user's cache, or a directory for this process where that cannot be written."""
    place = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "steppe"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="steppe-"))
    # Not a name in a shared directory: somebody else could have put code there.
    return place if os.access(place, os.W_OK) else Path(tempfile.mkdtemp(prefix="steppe-"))


def _write(path: Path, text: str) -> None:
    """Put the whole file in place at once: other processes may be doing the same."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)


@cache
def _load(path: Path) -> ModuleType:
    """Load a file once: methods that differ in their scalars alone share a rule's kernels."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
