"""What tasks and optimizers made in Python compute with is told apart, wherever it is kept."""

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from steppe._shared.source_hash import function_source


def described(value: Any) -> str:
    return function_source([value])


@dataclass(slots=True)
class Slots:
    p: float


class Own:
    def __init__(self, p: float) -> None:
        self.p = p


class Activated(nn.Module):
    def __init__(self, act: Callable[..., Any]) -> None:
        super().__init__()
        self.act = act


class Composed(list[Any]):
    """Transforms that can be called."""


class Level(IntEnum):
    LOW = 1
    HIGH = 2


def object_array(last: str) -> np.ndarray[Any, Any]:
    return np.array(["a", None, last], dtype=object)


class Point(NamedTuple):
    x: float
    y: float


PAIRS: dict[str, tuple[Any, Any]] = {
    "fields within a list": ([Point(1.0, 2.0)], [(1.0, 2.0)]),
    "members within a dictionary": ({"a": Level.LOW}, {"a": 1}),
    "keys of other types": ({"1": 0}, {1: 0}),
    "tuples within lists": ([(1, 2)], [[1, 2]]),
    "defaults within a dictionary": ({"a": defaultdict(list)}, {"a": defaultdict(dict)}),
    "patterns that are bound": (re.compile("a").findall, re.compile("b").findall),
    "dictionaries that are bound": ({"a": 1}.get, {"a": 50}.get),
    "masks": (np.ma.array([1.0, 2.0], mask=[0, 1]), np.ma.array([1.0, 2.0], mask=[1, 0])),
    "conjugates": (torch.tensor([1j]).conj(), torch.tensor([1j])),
    "negatives": (torch.tensor([1j]).conj().imag, torch.tensor([2j]).conj().imag),
    "lists of a class of one's own": (Composed([nn.ReLU]), [nn.ReLU]),
    "texts of a class of one's own": (Level.LOW, 1),
    "members": (Level.LOW, Level.HIGH),
    "the end of a long list": ([*range(1500)], [*range(1499), 0]),
    "the end of a long list of objects": ([Own(0.0)] * 1500, [*[Own(0.0)] * 1499, Own(0.9)]),
    "the end of a large dictionary": (dict.fromkeys(range(1500)), dict.fromkeys([*range(1499), 0])),
    "deep within": ([[[0.5] * 50] * 50] * 50, [*[[[0.5] * 50] * 50] * 49, [[0.6]]]),
    "a default": (defaultdict(list), defaultdict(dict)),
    "views": ({"a": 1}.keys(), {"b": 1}.keys()),
    "sparse tensors": (torch.eye(3).to_sparse(), (2 * torch.eye(3)).to_sparse()),
    "arrays of objects": (object_array("b"), object_array("c")),
    "functions in C": (partial(map, torch.relu), partial(map, torch.sin)),
    "functions of NumPy": (np.tanh, np.sin),
    "number formats": (torch.float32, torch.float64),
    "number formats of NumPy": (np.dtype("float32"), np.dtype("float64")),
    "slots": (Slots(0.0), Slots(0.9)),
    "attributes": (Own(0.0), Own(0.9)),
    "paths": (Path("one.pt"), Path("two.pt")),
    "arguments": (argparse.Namespace(p=0.0), argparse.Namespace(p=0.9)),
    "a namespace": (SimpleNamespace(p=0.0), SimpleNamespace(p=0.9)),
    "an activation": (Activated(nn.ReLU()), Activated(nn.Tanh())),
    "classes": (nn.ReLU, nn.Tanh),
    "sets": ({"a", "b"}, {"a", "c"}),
    "sets of objects": (frozenset({nn.ReLU}), frozenset({nn.Tanh})),
    "ranges": (range(3), range(4)),
    "slices": (slice(3), slice(4)),
    "bound methods": ("ab".startswith, "ab".endswith),
    "tensors": (torch.zeros(2), torch.ones(2)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_differs_is_told_apart(name: str) -> None:
    one, other = PAIRS[name]
    assert described(one) == described(one)
    assert described(one) != described(other)


def test_a_table_of_pandas_is_told_apart() -> None:
    pandas = pytest.importorskip("pandas")
    weights = [pandas.Series([1.0, each]) for each in (2.0, 2.0, 3.0)]
    weights[0].describe()  # fills caches
    assert len({described(each) for each in weights}) == 2
    texts = [pandas.DataFrame({"a": ["x", each], "b": [1, 2]}) for each in ("y", "y", "z")]
    assert len({described(each) for each in texts}) == 2
    kinds = [pandas.Series(["x", each], dtype="category") for each in ("y", "y", "z")]
    assert len({described(each) for each in kinds}) == 2


def test_generators_locks_and_files_say_nothing_but_what_they_are(tmp_path: Path) -> None:
    drawn, fresh = (torch.Generator().manual_seed(0) for _ in range(2))
    torch.rand(3, generator=drawn)
    assert described(drawn) == described(fresh)
    assert described(threading.Lock()) == described(threading.Lock())
    with (tmp_path / "a").open("w") as one, (tmp_path / "b").open("w") as other:
        assert described(one) == described(other)


SETTINGS = {"p": 0.0}
ARGUMENTS = argparse.Namespace(p=0.0)


def of_settings() -> float:
    return SETTINGS["p"]


@lru_cache
def of_arguments() -> Any:
    return [ARGUMENTS.p for _ in range(2)]


class OfSettings:
    def p(self) -> float:
        return of_settings()


@pytest.mark.parametrize("value", [of_settings, OfSettings, OfSettings(), partial(of_settings)])
def test_global_values_of_a_file_count(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument of a script, or a dictionary of settings, was not seen: old numbers came back."""
    before = described(value)
    monkeypatch.setitem(SETTINGS, "p", 0.9)
    assert described(value) != before


def test_so_do_those_of_a_cached_function(monkeypatch: pytest.MonkeyPatch) -> None:
    before = described(of_arguments)
    monkeypatch.setattr(ARGUMENTS, "p", 0.9)
    assert described(of_arguments) != before


@pytest.mark.parametrize(
    "members",
    [
        ("CFG = {'p': 0.0}", "CFG = {'p': 0.9}"),
        ("SIZES = (8, 8)", "SIZES = (8, 9)"),
        ("act = ReLU", "act = Tanh"),
        ("act = staticmethod(lambda x: x)", "act = staticmethod(lambda x: x + 1)"),
        ("act = property(lambda x: x)", "act = property(lambda x: x + 1)"),
    ],
)
def test_what_a_class_of_a_notebook_holds_counts(members: tuple[str, str]) -> None:
    def made(member: str) -> type:
        names: dict[str, Any] = {"__name__": "a_notebook", "ReLU": nn.ReLU, "Tanh": nn.Tanh}
        exec(f"class Net:\n    {member}", names)
        found: type = names["Net"]
        return found

    one, same, other = map(made, (members[0], *members))
    assert described(one) == described(same) != described(other)


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "own_helpers.py").write_text("P = 0.0\ndef net():\n    return P\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_helpers", raising=False)
    return importlib.import_module("own_helpers")


def test_a_module_that_a_notebook_imports_counts(
    helpers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> Callable[[], Any]:
        names: dict[str, Any] = {"__name__": "a_notebook", "helpers": helpers}
        exec("def model():\n    return helpers.net() + helpers.P", names)
        found: Callable[[], Any] = names["model"]
        return found

    before = described(make())
    assert described(make()) == before
    with monkeypatch.context() as patched:
        patched.setattr(helpers, "P", 0.9)
        assert described(make()) != before
    path = Path(str(helpers.__file__))
    path.write_text(path.read_text().replace("return P", "return P + 1"))
    # What runs is what was imported.
    assert described(make()) == before
    importlib.invalidate_caches()
    shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
    importlib.reload(helpers)
    assert described(make()) != before


def test_another_process_finds_the_same() -> None:
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from tests.shared import test_content_hash as t\n"
        "print([t.described(x) for pair in t.PAIRS.values() for x in pair])\n"
        "print(t.described(t.OfSettings()), t.described(t.of_arguments))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            cwd=Path(__file__).parents[2],
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def in_a_notebook(text: str, **names: Any) -> dict[str, Any]:
    names |= {"__name__": "a_notebook", "torch": torch, "NamedTuple": NamedTuple}
    exec(text, names)
    return names


CODE = """
{decorator}
class Config(NamedTuple, {meta}):
    size: int = 1
    @property
    def width(self): return self.size * {factor}
    def mean(self, x):
        "{doc}"
        def inner(y):
            "{doc}"
            return None
        return x.mean(), self.net, inner
"""


@pytest.mark.parametrize("changed", ["factor", "doc"])
def test_code_counts_and_docstrings_do_not(changed: str) -> None:
    first = {"factor": "2", "doc": "", "decorator": "", "meta": ""}
    code = CODE.replace(", {meta}", "")
    one, other = (
        in_a_notebook(code.format(**each))["Config"]() for each in (first, {**first, changed: "3"})
    )
    assert (described(one) == described(other)) == (changed == "doc")


def test_names_of_attributes_are_no_globals() -> None:
    """A method that reads self.net was another one once the notebook had a net."""
    code = CODE.replace(", {meta}", "").format(factor=2, doc="", decorator="")
    names = in_a_notebook(code)
    before = described(names["Config"])
    names.update(net=nn.Linear(1, 1), mean=3)
    assert described(names["Config"]) == before


def test_a_step_is_the_same_after_torch_has_wrapped_it() -> None:
    class Own(torch.optim.Optimizer):
        def step(self, closure: Any = None) -> None:
            pass

    class Inheriting(torch.optim.SGD):
        pass

    before = described(Own), described(Inheriting)
    Own([nn.Parameter(torch.zeros(1))], {})
    Inheriting([nn.Parameter(torch.zeros(1))])
    assert Own.step.hooked  # type: ignore[attr-defined]
    assert (described(Own), described(Inheriting)) == before


def test_a_setter_a_metaclass_and_registered_functions_count() -> None:
    def made(number: int) -> list[Any]:
        names = in_a_notebook(
            "from functools import singledispatch\n"
            f"class Meta(type):\n    def __call__(cls): return {number}\n"
            "class Made(metaclass=Meta): pass\n"
            "class Set:\n    @property\n    def x(self): return 0\n"
            f"    @x.setter\n    def x(self, value): self.y = {number}\n"
            "@singledispatch\ndef f(x): return 0\n"
            f"@f.register(int)\ndef _(x): return {number}\n"
        )
        return [names[name] for name in ("Made", "Set", "f")]

    ones, same, others = map(made, (1, 1, 2))
    assert [*map(described, ones)] == [*map(described, same)]
    assert not {*map(described, ones)} & {*map(described, others)}


def steps(factor: int) -> list[type]:
    """Return optimizers whose step is written in several ways."""
    names = in_a_notebook(
        "import functools\n"
        f"def other(self, closure=None): return {factor}\n"
        "def decorated(f):\n    def inner(self, closure=None): return f(self)\n    return inner\n"
        "class A(torch.optim.SGD):\n    step = other\n"
        "class B(torch.optim.SGD):\n    @decorated\n"
        f"    def step(self, closure=None): return {factor}\n"
        "class C(torch.optim.AdamW):\n    @functools.wraps(torch.optim.AdamW.step)\n"
        f"    def step(self, closure=None): return {factor}\n"
        "class SGD(torch.optim.SGD): pass\n"
    )
    return [names[name] for name in ("A", "B", "C", "SGD")]


def test_steps_of_every_form_count_before_and_after_an_instance() -> None:
    torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    ones, others = steps(1), steps(2)
    before = [*map(described, ones)]
    for kind in (*ones, *others):
        kind([nn.Parameter(torch.zeros(1))])
    assert [*map(described, ones)] == before
    assert not {*before[:3]} & {*map(described, others[:3])}
    assert described(others[3]) == before[3]


def test_arguments_count_by_their_order() -> None:
    def made(arguments: str) -> Any:
        return in_a_notebook(f"def f({arguments}): return a - b")["f"]

    assert described(made("a, b")) == described(made("a, b")) != described(made("b, a"))


@pytest.mark.parametrize(
    "code",
    [
        "def f(): return getattr(helpers, 'net')()",
        "def f():\n    h = helpers\n    return h.net()",
        "def make(h):\n    def f(): return h.net()\n    return f\nf = make(helpers)",
    ],
)
def test_modules_count_that_are_used_as_a_whole(
    code: str, helpers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = in_a_notebook(code, helpers=helpers)["f"]
    before = described(value)
    monkeypatch.setattr(helpers, "P", 0.9)
    assert described(value) != before


def test_the_environment_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    names = in_a_notebook(
        "def f(): return os.environ.get('A'), environ['A']", os=os, environ=os.environ
    )
    before = described(names["f"])
    monkeypatch.setenv("UNRELATED", "1")
    assert described(names["f"]) == before


class Settings(dict[str, Any]):
    __getattr__ = dict.__getitem__


class Node:
    def __init__(self) -> None:
        self.neighbours: set[Node] = set()


def test_settings_by_attribute_and_graphs_are_described() -> None:
    assert described(Settings(p=0.0)) != described(Settings(p=0.9))
    one, other = Node(), Node()
    one.neighbours, other.neighbours = {other}, {one}
    assert described(one) == described(one)
