"""What all tests of reports share."""

from collections.abc import Iterator

import pytest

from steppe.compare.records.best_of_k import compare_pools


@pytest.fixture(autouse=True, scope="module")
def _few_swaps() -> Iterator[None]:
    """Swap labels a tenth as often, which takes most of a report's time; p is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(compare_pools.__kwdefaults__, "swaps", 999)
        yield
