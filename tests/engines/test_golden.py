"""What runs: a kernel's source on the CPU, a method's scalars on the GPU, as files to be read.

``python tests/engines/test_golden.py`` writes the files anew.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

import steppe
from helpers.optimizer_configs import Config, parameters
from steppe._engines import Method
from steppe._engines.cpu.codegen import update_source
from steppe._engines.cpu.operands import Formats
from steppe._engines.gpu.scalar_program import record

GOLDEN = Path(__file__).with_name("golden")


def method_and_group(name: str) -> tuple[Method, dict[str, object]]:
    group = Config(name)(parameters()).param_groups[0]
    return getattr(steppe, name)(parameters())._method(group), group


def cpu_source(name: str, *state: str) -> str:
    return update_source(method_and_group(name)[0], Formats("float32", state))


_SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "power": "**"}


def gpu_scalars(name: str) -> str:
    """Write a scalar program as assignments: every program of the update goes through it."""
    method, group = method_and_group(name)
    program = record(method, group)
    inputs = ["t", "filled slots"]
    for option in method.options:
        value = group[option]
        inputs += [f"{option}[{i}]" for i in range(2)] if isinstance(value, tuple) else [option]
    inputs.append("kappa")
    lines = [f"# The scalars of {name}, in float64, on the device. Inputs:"]
    lines += [f"v{i} = {text}" for i, text in enumerate(inputs)]
    lines.append("# Operations, in the order in which the rule's Python does them:")
    steps = zip(program.operations, program.left, program.right, strict=True)
    for i, (operation, left, right) in enumerate(steps, start=len(inputs)):
        if operation == "constant":
            lines.append(f"v{i} = {left}")
        elif operation in _SIGNS:
            lines.append(f"v{i} = v{left} {_SIGNS[operation]} v{right}")
        else:
            lines.append(f"v{i} = {operation}(v{left}, v{right})")
    lines.append("# What the rule is given:")
    named = zip(method.scalar_names, program.results, strict=True)
    lines += [f"{scalar} = v{i}" for scalar, i in named]
    return "\n".join(lines) + "\n"


FILES: dict[str, Callable[[], str]] = {
    "cpu_dual_adam_float32.txt": lambda: cpu_source("DualAdam", "float32", "float32"),
    "cpu_adam_cm_float32.txt": lambda: cpu_source("AdamCM", "float32", "float32", "float32"),
    "cpu_dual_adam_int8.txt": lambda: cpu_source("DualAdam", "signed8", "square8"),
    "gpu_scalars_dual_adam.txt": lambda: gpu_scalars("DualAdam"),
    "gpu_scalars_adam_cm.txt": lambda: gpu_scalars("AdamCM"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_runs_is_what_the_file_says(name: str) -> None:
    assert FILES[name]() == (GOLDEN / name).read_text()


def test_sources_name_only_what_they_use() -> None:
    """Each function loads those of its arguments that occur in it again."""
    source = FILES["cpu_adam_cm_float32.txt"]()
    for function in source.split("\n\n\n")[1:]:
        loaded = [line.split()[0] for line in function.splitlines() if "load(arguments," in line]
        assert loaded
        assert all(function.count(name) > 1 for name in loaded)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, text in FILES.items():
        (GOLDEN / name).write_text(text())
