"""A model or a loss that changes its batch in place finds it as it was in every pass."""

import threading
from collections.abc import Callable, Iterator, MutableMapping
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import instruments
from steppe.landscape import barrier, ggn, hessian, sharpness, top_eigenvalues, trace
from steppe.theory.noise import gradient_noise

D = torch.float64
PIXELS = 255 * torch.rand(12, 4, dtype=D, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3


class Normalising(nn.Module):
    """Normalises pixels, in place or not."""

    def __init__(self, in_place: bool, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).to(D)
        self.in_place = in_place

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> Any:
        if self.in_place:
            return self.body(pixels.sub_(127.5).div_(127.5))
        return self.body((pixels - 127.5) / 127.5)


class OwnLoss(Normalising):
    """Computes its loss too."""

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"loss": super().forward(pixels).square().mean()}


def pairs() -> list[Any]:
    """Return batches of tensors of their own."""
    return [(x.clone(), y) for x, y in zip(PIXELS.split(5), LABELS.split(5), strict=True)]


def mappings() -> list[Any]:
    return [{"pixels": x, "labels": y} for x, y in pairs()]


def on_mappings(outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(outputs, batch["labels"])


def matrix(H: Any) -> Any:
    return H.matmat(torch.eye(H.size, dtype=H.dtype)).tolist()


INSTRUMENTS: dict[str, Callable[..., Any]] = {
    **instruments.INSTRUMENTS,
    **{
        product: lambda *a, product=product: matrix(hessian(*a, product=product))
        for product in ("double-backward", "forward-over-reverse", "finite-differences")
    },
    "ggn": lambda *a: matrix(ggn(*a)),
    "eigenvalues": lambda *a: top_eigenvalues(hessian(*a), 2).to_dict(),
    "trace": lambda *a: trace(hessian(*a), products=20).to_dict(),
    "sharpness": lambda *a: sharpness(*a, ascent_steps=2).to_dict(),
    "barrier": lambda model, *a: barrier(model, doubled(model), *a, points=3).to_dict(),
    "noise": lambda model, *a: gradient_noise(model, *a, torch.ones(43)).variance,
}


def doubled(model: nn.Module) -> nn.Module:
    other = deepcopy(model)
    with torch.no_grad():
        for param in other.parameters():
            param *= 2
    return other


@pytest.mark.parametrize("name", INSTRUMENTS)
@pytest.mark.parametrize(("make", "loss"), [(pairs, F.cross_entropy), (mappings, on_mappings)])
def test_inputs(name: str, make: Callable[[], list[Any]], loss: Callable[..., Tensor]) -> None:
    data = make()
    found = INSTRUMENTS[name](Normalising(True), loss, data)
    assert str(found) == str(INSTRUMENTS[name](Normalising(False), loss, make()))
    for batch, untouched in zip(data, make(), strict=True):
        assert str(batch) == str(untouched)


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_targets(name: str) -> None:
    def shifting(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels.add_(1).remainder_(3))

    def shifted(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, (labels + 1) % 3)

    data = [(x, y.clone()) for x, y in pairs()]
    found = INSTRUMENTS[name](Normalising(False), shifting, data)
    assert str(found) == str(INSTRUMENTS[name](Normalising(False), shifted, pairs()))
    assert torch.equal(torch.cat([y for _, y in data]), LABELS)


@pytest.mark.parametrize("name", [name for name in INSTRUMENTS if name != "ggn"])
def test_a_loss_of_the_models_own(name: str) -> None:
    data = mappings()
    found = INSTRUMENTS[name](OwnLoss(True), None, data)
    assert str(found) == str(INSTRUMENTS[name](OwnLoss(False), None, mappings()))
    assert torch.equal(torch.cat([batch["pixels"] for batch in data]), PIXELS)


@pytest.mark.parametrize("m", [None, 3])
@pytest.mark.parametrize("is_mapping", [True, False])
def test_inputs_that_are_the_targets_too_are_compared_with_as_in_training(
    m: int | None, is_mapping: bool
) -> None:
    def rebuilt(outputs: Tensor, batch: Any) -> Tensor:
        return F.mse_loss(outputs, batch["pixels"] if is_mapping else batch)

    def by_hand(outputs: Tensor, pixels: Tensor) -> Tensor:
        return F.mse_loss(outputs, (pixels - 127.5) / 127.5)

    each = [x for x, _ in pairs()]
    data: list[Any] = [{"pixels": x} if is_mapping else (x, x) for x in each]
    found = sharpness(Normalising(True, outputs=4), rebuilt, data, m=m)
    truth = sharpness(Normalising(False, outputs=4), by_hand, [(x, x) for x in each], m=m)
    assert found.value == pytest.approx(truth.value, rel=1e-12)
    assert torch.equal(torch.cat(each), PIXELS)


class Graph:
    """An object of a user's own around a tensor."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels


class ClonedGraph(Graph):
    lock = None

    def __init__(self, pixels: Tensor) -> None:
        super().__init__(pixels)
        self.lock = threading.Lock()

    def to(self, device: torch.device) -> "Graph":
        return self

    def clone(self) -> "Graph":
        return type(self)(self.pixels.clone())


class OddGraph(Graph):
    """Its methods have the names of a tensor's, and do something else."""

    def to(self, unit: str, scale: float) -> "Graph":
        raise AssertionError

    def clone(self, name: str) -> "Graph":
        raise AssertionError


class NamedGraph(Graph):
    clone = "Dolly"
    to = "the moon"


class ForwardingGraph(Graph):
    """Hands on whatever it does not have: ``to``, ``clone`` and ``__deepcopy__`` are a tensor's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pixels, name)


class LockedGraph(Graph):
    """Has a part that cannot be copied."""

    def __init__(self, pixels: Tensor) -> None:
        super().__init__(pixels)
        self.lock, self.itself = threading.Lock(), self


class UnfinishedGraph(Graph):
    def clone(self) -> "Graph":
        raise NotImplementedError


class OfGraphs(Normalising):
    def forward(self, graph: Any, labels: Tensor | None = None) -> Any:
        return super().forward(graph.pixels)


def on_graphs(outputs: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(outputs, batch["labels"])


@pytest.mark.parametrize("is_mapping", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        Graph,
        ClonedGraph,
        OddGraph,
        NamedGraph,
        ForwardingGraph,
        LockedGraph,
        UnfinishedGraph,
    ],
)
def test_objects_of_other_types(kind: type[Graph], is_mapping: bool) -> None:
    data: list[Any] = [(kind(x), y) for x, y in pairs()]
    graphs = [graph for graph, _ in data]
    loss: Any = F.cross_entropy
    if is_mapping:
        # What a model is handed beside them may be anything.
        data, loss = [{"labels": y, "graph": graph} for graph, y in data], on_graphs
    found = sharpness(OfGraphs(True), loss, data)
    assert found.value == sharpness(Normalising(False), F.cross_entropy, pairs()).value
    assert torch.equal(torch.cat([graph.pixels for graph in graphs]), PIXELS)


class Pair(tuple[Any, ...]):
    __slots__ = ()

    def __new__(cls, pixels: Tensor, name: str) -> "Pair":
        return super().__new__(cls, (pixels, name))


class Marked(list[Any]):
    def __init__(self, pixels: Tensor, name: str) -> None:
        super().__init__([pixels, name])
        self.is_marked = True


class Table(MutableMapping[int, Any]):
    """Keeps its entries in an attribute, as ``copy.copy`` shares them."""

    def __init__(self, pixels: Tensor, name: str) -> None:
        self.entries: dict[int, Any] = {0: pixels, 1: name}

    def __getitem__(self, key: int) -> Any:
        return self.entries[key]

    def __setitem__(self, key: int, value: Any) -> None:
        self.entries[key] = value

    def __delitem__(self, key: int) -> None:
        del self.entries[key]

    def __iter__(self) -> Iterator[int]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


@pytest.mark.parametrize("kind", [Pair, Marked, Table])
def test_containers_with_constructors_of_their_own(kind: Any) -> None:
    class OfContainers(Normalising):
        def forward(self, container: Any, labels: Tensor | None = None) -> Any:
            assert type(container) is kind
            assert getattr(container, "is_marked", kind is not Marked)
            return super().forward(container[0])

    containers = [(kind(x, "a"), y) for x, y in pairs()]
    data = [{"container": container, "labels": y} for container, y in containers]
    found = sharpness(OfContainers(True), on_mappings, data)
    assert found.value == sharpness(Normalising(False), F.cross_entropy, pairs()).value
    assert torch.equal(torch.cat([container[0] for container, _ in containers]), PIXELS)


def test_what_cannot_be_copied_is_handed_on() -> None:
    class Drawing(Normalising):
        def forward(self, pixels: Tensor, generator: Any = None) -> Any:
            assert isinstance(generator, torch.Generator)
            return super().forward(pixels)

    generator = torch.Generator()
    data = [((x, generator), y) for x, y in pairs()]
    found = sharpness(Drawing(True), F.cross_entropy, data)
    assert found.value == sharpness(Normalising(False), F.cross_entropy, pairs()).value
