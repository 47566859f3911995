"""Things are done in turn."""

import torch

from steppe.bench.timing import time_in_turn

CPU = torch.device("cpu")


def test_one_after_the_other_round_by_round() -> None:
    done = []
    times = time_in_turn([lambda: done.append("a"), lambda: done.append("b")], 3, CPU)
    assert done == ["a", "b"] * 3
    assert [len(taken) for taken in times] == [3, 3]
    assert all(second >= 0 for taken in times for second in taken)
