"""What an action takes while it runs."""

import sys

import pytest
import torch

from steppe.bench.memory import peak_extra

SIZE = 2**25
CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
@pytest.mark.parametrize("copies", [0, 1, 2])
def test_the_peak_is_seen_however_often_it_was_there_before(copies: int) -> None:
    def take() -> None:
        _ = [torch.ones(SIZE // 4) for _ in range(copies)]

    for _ in range(3):
        extra = peak_extra(take, CPU)
        assert extra is not None
        assert extra == pytest.approx(copies * SIZE, abs=0.05 * SIZE)


def test_where_nobody_tells_there_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steppe.bench.memory.os.access", lambda *_: False)
    assert peak_extra(lambda: None, CPU) is None
