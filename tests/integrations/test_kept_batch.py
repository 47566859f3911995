"""A batch is for the second pass what it was for the first, whatever holds it."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from steppe.integrations._kept_batch import KeptBatch

Pair = namedtuple("Pair", ["x", "more"])


@dataclass
class Graph:
    x: Tensor
    more: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    more: dict[str, Tensor]


class Own:
    def __init__(self, x: Tensor, more: dict[str, Tensor]) -> None:
        self.x, self.more = x, more


class Words(list):
    pass


def tensor() -> Tensor:
    return torch.arange(3.0)


MAKERS = {
    "dict": lambda: {"x": tensor(), "more": {"y": tensor()}},
    "OrderedDict": lambda: OrderedDict(x=tensor(), more={"y": tensor()}),
    "UserDict": lambda: UserDict(x=tensor(), more={"y": tensor()}),
    "list": lambda: [tensor(), {"y": tensor()}],
    "list of its own": lambda: Words([tensor(), {"y": tensor()}]),
    "tuple": lambda: (tensor(), {"y": tensor()}),
    "namedtuple": lambda: Pair(tensor(), {"y": tensor()}),
    "dataclass": lambda: Graph(tensor(), {"y": tensor()}),
    "frozen": lambda: Frozen(tensor(), {"y": tensor()}),
    "object": lambda: Own(tensor(), {"y": tensor()}),
    "nested": lambda: [{"x": Graph(tensor(), {"y": tensor()})}],
}


def parts(batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    while True:
        if hasattr(batch, "x"):
            return batch.x, batch.more
        if isinstance(batch, dict | UserDict) and "more" in batch:
            return batch["x"], batch["more"]
        if len(batch) == 2:
            return batch[0], batch[1]
        batch = batch[0] if isinstance(batch, list) else batch["x"]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_what_is_taken_out_is_there_again(make: Any) -> None:
    batch = make()
    kept = KeptBatch(batch)
    x, more = parts(batch)
    for _ in range(2):
        parts(batch)[1].clear()
        batch = kept.again()
        assert type(batch) is type(make())
        assert parts(batch)[0] is x
        assert list(parts(batch)[1]) == ["y"]
    assert more == {}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_changed_in_place_is_refused(make: Any, which: int) -> None:
    batch = make()
    kept = KeptBatch(batch)
    x, more = parts(batch)
    (x if which == 0 else more["y"]).mul_(2)
    with pytest.raises(RuntimeError, match=r"batch in place \(its tensor of shape \(3,\)"):
        kept.again()


def test_attributes_are_there_again() -> None:
    batch = Graph(tensor())
    kept = KeptBatch(batch)
    batch.x = batch.x / 2
    assert torch.equal(kept.again().x, tensor())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_odd_batches_are_kept() -> None:
    with torch.inference_mode():
        inference = torch.ones(2)
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    holding_itself: dict[str, Any] = {"x": tensor()}
    holding_itself["self"] = holding_itself
    module = torch.nn.Linear(2, 2)
    for batch in (None, 3, "text", inference, nested, holding_itself, module, range(3)):
        again = KeptBatch(batch).again()
        assert again is batch or batch is holding_itself
    kept = KeptBatch(nested)
    nested.mul_(2)
    with pytest.raises(RuntimeError, match="a nested tensor"):
        kept.again()


def test_a_models_output_is_kept() -> None:
    transformers = pytest.importorskip("transformers.modeling_outputs")
    output = transformers.BaseModelOutput(last_hidden_state=tensor(), hidden_states=(tensor(),))
    kept = KeptBatch(output)
    again = kept.again()
    assert type(again) is type(output)
    assert again.last_hidden_state is output.last_hidden_state
    output.last_hidden_state.mul_(2)
    with pytest.raises(RuntimeError, match="in place"):
        kept.again()
