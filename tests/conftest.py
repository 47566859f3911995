"""What all tests share."""

import gc
import os
import signal
import zlib
from collections import defaultdict
from collections.abc import Iterator

# NumPy reads it when it is imported. On small matrices threads wait for each other longer than they
# compute, and while they wait, they take the time of other tests.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

from helpers import optional

# Triton reads it when it is imported: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A deadline would make a test fail because the machine is busy, and random examples would make it
# fail for whoever happens to draw them.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


# With --quick, one of so many cases of a test that has more.
_ONE_OF = 4


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what ``make quick`` asks for."""
    parser.addoption(
        "--quick",
        action="store_true",
        help="leave out tests marked thorough, and three of four cases of a test with many",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests whose fixtures start something that a machine may not have; and be quick."""
    for item in items:
        for fixture in optional.OF_FIXTURE.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.needs(optional.OF_FIXTURE[fixture]))
    if not config.getoption("--quick"):
        return
    kept = set(_quick(items))
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def _quick(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """Yield the tests that take little time; of many cases the first, and each fourth by chance."""
    by_test: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if not item.get_closest_marker("thorough"):
            by_test[item.nodeid.partition("[")[0]].append(item)
    for cases in by_test.values():
        for number, item in enumerate(cases):
            # By a hash: cases in turn would be of one engine, where engines are two.
            drawn = zlib.crc32(item.nodeid.encode()) % _ONE_OF == 0
            if number == 0 or drawn or len(cases) <= _ONE_OF:
                yield item


def pytest_collection_finish() -> None:
    """Keep what has been imported out of every later collection of garbage."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs something that is not there."""
    optional.skip_if_absent(item)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """On small tensors threads wait for each other longer than they compute."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _interrupts_arrive() -> Iterator[None]:
    """Let SIGINT and SIGHUP arrive also where they are ignored, here and in all that tests start.

    Build servers start tests under ``nohup`` or with ``&``, and processes inherit that they ignore
    a signal; one that has a handler is back to the default in a program that is started.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGHUP, hang_up)
