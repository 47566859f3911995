"""The Triton engine's kernels compile for GPUs that are not there."""

import json
from pathlib import Path

import pytest

from helpers.warm_python import run

pytestmark = pytest.mark.thorough

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("compile_kernels.py")


@pytest.mark.parametrize(
    ("target", "binary"),
    [
        (("cuda", "80", "32"), "cubin"),
        (("cuda", "90", "32"), "cubin"),
        (("hip", "gfx942", "64"), "hsaco"),
    ],
    ids=["sm_80", "sm_90", "gfx942"],
)
def test_kernels_compile(target: tuple[str, ...], binary: str) -> None:
    """On NVIDIA's GPUs whole chunks are read and written 128 bits at a time.

    Triton keeps what it has compiled, by a hash of all that it is made of.
    """
    printed = run(SCRIPT, *target)
    found = [json.loads(line) for line in printed.splitlines()]
    assert [line["kernel"] for line in found].count("update") == 7
    assert all(line["binary"] == [binary] for line in found)
    if binary == "cubin":
        assert found[0]["wide loads"] >= 4  # p, g, m, v
        assert found[0]["wide stores"] >= 3  # p, m, v
