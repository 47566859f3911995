"""Curvature by layer, against the blocks of dense Hessians in float64."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from steppe.landscape import by_layer, curvature_by_layer, hessian
from steppe.landscape.spectra.block_norms import block_norms


class Block(nn.Module):
    """Two modules, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.up, self.down = nn.Linear(4, 3), nn.Linear(3, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(x * self.scale)))


class Network(nn.Module):
    """A shift of its own, two blocks, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((4,), 0.1))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.shift
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture
def model() -> Network:
    torch.manual_seed(0)
    return Network().double()


@pytest.fixture
def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    return [(x[:8], torch.arange(8) % 3), (x[8:], torch.arange(4) % 3)]


def dense(model: nn.Module, data) -> torch.Tensor:
    H = hessian(model, F.cross_entropy, data)
    return H.matmat(torch.eye(H.size, dtype=torch.float64))


def places(model: nn.Module, names: list[str]) -> list[int]:
    """Rows of the whole Hessian that belong to some parameters."""
    rows, begin = [], 0
    for name, param in model.named_parameters():
        if name in names:
            rows += range(begin, begin + param.numel())
        begin += param.numel()
    return rows


OWN = {
    "shift": ["shift"],
    "blocks.0": ["blocks.0.scale"],
    "blocks.0.up": ["blocks.0.up.weight", "blocks.0.up.bias"],
    "blocks.0.down": ["blocks.0.down.weight"],
    "blocks.1": ["blocks.1.scale"],
    "blocks.1.up": ["blocks.1.up.weight", "blocks.1.up.bias"],
    "blocks.1.down": ["blocks.1.down.weight"],
    "head": ["head.weight", "head.bias"],
}
_INSIDE = ["scale", "up.weight", "up.bias", "down.weight"]
BY_BLOCK = {
    "shift": ["shift"],
    **{f"blocks.{i}": [f"blocks.{i}.{name}" for name in _INSIDE] for i in range(2)},
    "head": OWN["head"],
}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, OWN),
        (Block, BY_BLOCK),
        ((Block, nn.Linear), BY_BLOCK),
        (nn.Linear, OWN),
        ({"ends": ["head", "shift"], "up": r"up\.w"}, {
            "ends": ["shift", "head.weight", "head.bias"],
            "up": ["blocks.0.up.weight", "blocks.1.up.weight"],
        }),
    ],
    ids=["own", "block", "block and linear", "linear", "named"],
)  # fmt: skip
def test_each_layer_has_the_curvature_of_its_block(model, data, layers, expected) -> None:
    whole = dense(model, data)
    found = by_layer(model, F.cross_entropy, data, layers=layers, trace_products=60)
    assert [each.name for each in found.layers] == list(expected)
    assert found.complete
    for name, params in expected.items():
        rows = places(model, params)
        block = whole[rows][:, rows]
        assert found[name].parameters == len(rows)
        values = torch.linalg.eigvalsh(block)
        assert found[name].top.values[0] == pytest.approx(float(values[-1]), rel=1e-3, abs=1e-9)
        trace = found[name].trace
        assert abs(trace.value - float(block.trace())) <= 4 * trace.stderr + 1e-9


def test_sharpness_is_of_the_layer_alone(model, data) -> None:
    found = by_layer(model, F.cross_entropy, data, rho=0.3, trace_products=6)
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    start = F.cross_entropy(model(x), y)
    params = [model.head.weight, model.head.bias]
    grads = torch.autograd.grad(start, params)
    length = torch.cat([grad.flatten() for grad in grads]).norm()
    with torch.no_grad():
        for param, grad in zip(params, grads, strict=True):
            param += 0.3 * grad / length
        rise = float(F.cross_entropy(model(x), y) - start)
    assert found["head"].sharpness.value == pytest.approx(rise, rel=1e-6)


def test_what_lies_between_layers(model, data) -> None:
    whole = dense(model, data)
    found = by_layer(
        model, F.cross_entropy, data, layers=Block, between=200, trace_products=6, seed=3
    ).between
    rows = [places(model, params) for params in BY_BLOCK.values()]
    norms = np.array([[float(whole[a][:, b].norm()) for b in rows] for a in rows])
    assert found.norms == pytest.approx(norms, rel=0.15)
    assert (np.abs(found.norms - norms) <= 4 * found.errors).all()
    share = 1 - np.square(np.diag(norms)).sum() / np.square(norms).sum()
    assert abs(found.off_diagonal - share) <= 4 * found.off_diagonal_error
    assert 0 < found.off_diagonal_error < 0.1


def test_errors_of_what_lies_between_are_those_of_the_spread(model, data) -> None:
    """Over many seeds the estimates scatter as the errors say."""
    H = hessian(model, F.cross_entropy, data, params=["blocks.0.up", "head"])
    found = [block_norms(H, [15, 15], 8, seed) for seed in range(40)]
    for values, errors in (
        ([each.off_diagonal for each in found], [each.off_diagonal_error for each in found]),
        ([each.norms[0, 1] for each in found], [each.errors[0, 1] for each in found]),
    ):
        assert np.std(values, ddof=1) == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=0.5)


def test_one_vector_has_no_error(model, data) -> None:
    found = by_layer(
        model, F.cross_entropy, data, layers={"head": "head"}, between=1, trace_products=6
    )
    assert math.isnan(found.between.off_diagonal_error)
    assert np.isnan(found.between.errors).all()
    assert found.between.off_diagonal == 0
    assert str(found).splitlines()[-1] == "between layers: 0 % of ‖H‖_F²"


def test_layers_of_frozen_parameters_are_left_out(model, data) -> None:
    model.blocks[0].requires_grad_(False)
    found = by_layer(model, F.cross_entropy, data, layers=Block, trace_products=6)
    assert [each.name for each in found.layers] == ["shift", "blocks.1", "head"]
    found = by_layer(model, F.cross_entropy, data, params="blocks.1", trace_products=6)
    assert [each.name for each in found.layers] == ["blocks.1", "blocks.1.up", "blocks.1.down"]


def test_a_tied_weight_is_in_its_first_layer(data) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    found = by_layer(model.double(), F.cross_entropy, data, trace_products=6)
    assert [(each.name, each.parameters) for each in found.layers] == [("0", 16)]


def test_a_layer_that_the_loss_does_not_depend_on_is_flat(model, data) -> None:
    model.unused = nn.Linear(2, 2).double()
    found = by_layer(model, F.cross_entropy, data, trace_products=6, between=2)["unused"]
    assert (found.top.values[0], found.trace.value, found.sharpness.value) == (0, 0, 0)


def test_table_json_and_pictures(model, data) -> None:
    found = by_layer(model, F.cross_entropy, data, layers=Block, trace_products=12, between=2)
    lines = str(found).splitlines()
    assert lines[0].split() == ["layer", "parameters", "λ_max", "trace", "share", "sharpness"]
    assert [line.split()[0] for line in lines[1:5]] == ["shift", "blocks.0", "blocks.1", "head"]
    assert lines[5].startswith("between layers: ")
    assert sum(float(row[4].rstrip("%")) for row in found.rows()) == pytest.approx(100, abs=0.2)
    content = json.loads(json.dumps(found.to_dict()))
    assert content["layers"][3]["name"] == "head"
    assert np.shape(content["between"]["norms"]) == (4, 4)
    assert "blocks.1" in found._repr_html_()
    labels = [text.get_text() for text in found.plot().get_yticklabels()]
    assert labels == ["shift", "blocks.0", "blocks.1", "head"]
    titles = [axes.get_title(loc="left") for axes in found.figure().axes]
    assert titles[:4] == ["λ_max", "trace", "sharpness, ρ = 0.05", "between layers"]


def test_ctrl_c_keeps_whole_layers(model, data, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    own = curvature_by_layer.sharpness

    def stopped(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return own(*args, **kwargs)

    monkeypatch.setattr(curvature_by_layer, "sharpness", stopped)
    found = by_layer(model, F.cross_entropy, data, trace_products=6, between=2)
    assert [each.name for each in found.layers] == ["shift", "blocks.0"]
    assert not found.complete
    assert found.between is None
    calls[:] = [1, 1]
    with pytest.raises(KeyboardInterrupt):
        by_layer(model, F.cross_entropy, data, trace_products=6)


def test_the_same_seed_gives_the_same_numbers(model, data) -> None:
    options = {"layers": Block, "trace_products": 6, "between": 2}
    one, other = (by_layer(model, F.cross_entropy, data, seed=4, **options) for _ in range(2))
    assert one.to_dict() == other.to_dict()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": "head"}, TypeError, "layers must be a type of modules.*got 'head'"),
        ({"layers": (nn.Linear, 3)}, TypeError, "layers must be a type of modules"),
        ({"layers": nn.Conv2d}, ValueError, "no module of type Conv2d: there are Block, Linear"),
        ({"layers": {}}, ValueError, "layers is empty"),
        ({"layers": {3: "head"}}, TypeError, "layers must map names"),
        ({"layers": {"a": "head", "b": "head.bias"}}, ValueError, "'a' and 'b' have the same"),
        ({"layers": {"a": "haed"}}, ValueError, "params='haed' chooses no parameter"),
        ({"layers": {"a": "head"}, "params": "shift"}, ValueError, "'a' has none of the param"),
        ({"between": -1}, ValueError, "between"),
        ({"between": 1.5}, TypeError, "between"),
        ({"trace_products": 3}, ValueError, "products=3 must be at least 6"),
        ({"rho": -1.0}, ValueError, "rho"),
    ],
    ids=str,
)
def test_mistakes_are_named(model, data, options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        by_layer(model, F.cross_entropy, data, **options)


def test_an_unknown_layer_is_named(model, data) -> None:
    found = by_layer(model, F.cross_entropy, data, layers={"a": "head"}, trace_products=6)
    with pytest.raises(KeyError, match="no layer is called 'b': a"):
        found["b"]
