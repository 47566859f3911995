"""``params=``: names, regular expressions, modules, their types and functions choose parameters."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from steppe.landscape import Objective, hessian, line, profile, sharpness, top_eigenvalues

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.linear(self.norm(x)))


def network() -> nn.Sequential:
    """Eleven blocks, so that "1" is the beginning of another name, and a head."""
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(11)), nn.Linear(4, 3))


def names(model: nn.Module, params) -> list[str]:
    return Objective(model, F.cross_entropy, [(X, Y)], params=params).names


LINEARS = [f"{i}.linear.{kind}" for i in range(11) for kind in ("weight", "bias")]
HEAD = ["11.weight", "11.bias"]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ("11", HEAD),
        ("11.bias", ["11.bias"]),
        ("1", ["1.norm.weight", "1.norm.bias", "1.linear.weight", "1.linear.bias"]),
        ("10.linear", ["10.linear.weight", "10.linear.bias"]),
        (r"^1\.|^10\..*bias", [
            *("1.norm.weight", "1.norm.bias", "1.linear.weight", "1.linear.bias"),
            *("10.norm.bias", "10.linear.bias"),
        ]),
        (re.compile("LINEAR", re.IGNORECASE), LINEARS),
        (nn.Linear, LINEARS + HEAD),
        (lambda name, p: p.ndim == 2 and name > "2", [
            *(f"{i}.linear.weight" for i in range(2, 10)),
        ]),
        (["11", "0.norm.bias"], [*HEAD, "0.norm.bias"]),
        (["11.bias", nn.Linear], ["11.bias", *LINEARS, "11.weight"]),
        (("11", r"^11\."), HEAD),
    ],
)  # fmt: skip
def test_what_is_chosen(params, expected: list[str]) -> None:
    assert names(network(), params) == expected


def test_types_and_modules_choose_what_is_inside() -> None:
    model = network()
    every = [name for name, _ in model.named_parameters()]
    assert names(model, Block) == every[:-2]
    assert names(model, model) == names(model, None) == every
    assert names(model, model[3]) == [name for name in every if name.startswith("3.")]
    assert names(model, [model[11], model[2].norm.bias]) == [*HEAD, "2.norm.bias"]


def test_a_shared_parameter_has_all_its_names() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    assert names(model, "2") == names(model, "2.weight") == names(model, r"\b2\b") == ["0.weight"]


def test_frozen_parameters_are_left_out() -> None:
    model = network()
    model[11].weight.requires_grad_(False)
    assert names(model, "11") == names(model, model[11]) == ["11.bias"]
    assert "11.weight" not in names(model, nn.Linear)
    with pytest.raises(ValueError, match=r"params='11\.weight' chooses none but parameters that"):
        names(model, "11.weight")


def test_names_are_those_inside_of_wrappers() -> None:
    assert names(nn.DataParallel(network()), "11") == HEAD


def test_blocks_of_the_hessian_are_those_of_the_whole() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    data = [(X.double(), Y)]
    whole = hessian(model, F.cross_entropy, data)
    dense = whole.matmat(torch.eye(whole.size, dtype=torch.float64))
    for params, part in ((["0"], slice(0, 25)), ("2", slice(25, 43)), (r"2\.w", slice(25, 40))):
        H = hessian(model, F.cross_entropy, data, params=params)
        block = H.matmat(torch.eye(H.size, dtype=torch.float64))
        torch.testing.assert_close(block, dense[part, part])
        largest = torch.linalg.eigvalsh(dense[part, part])[-1]
        found = top_eigenvalues(H, 1, which="LA")
        assert found.values[0] == pytest.approx(float(largest), rel=1e-3)


def test_all_instruments_take_it() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    data = [(X, Y)]
    before = model[0].weight.clone()
    assert profile(model, F.cross_entropy, data, params="2", k=1).parameters == 18
    assert sharpness(model, F.cross_entropy, data, params="2").value > 0
    assert len(line(model, F.cross_entropy, data, params="2", points=3).losses) == 3
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ("11.wieght", ValueError, r"params='11\.wieght' chooses no .*did you mean 11\.w"),
        ("(", ValueError, r"params='\(' is neither the name .* nor a regular expression"),
        (re.compile("conv"), ValueError, r"params=re\.compile\('conv'\) chooses no parameter"),
        (nn.Conv2d, ValueError, "params=Conv2d chooses no parameter: There are 0.norm.weight"),
        (nn.Linear(2, 2), ValueError, r"params=Linear\(…\) chooses no parameter"),
        (["11", "12"], ValueError, r"params\[1\]='12' chooses no parameter"),
        (lambda name, p: False, ValueError, "chooses no parameter: There are .* and 41 more"),
        (3, TypeError, "params must be a list of the model's parameters, or choose some .*got int"),
        (int, TypeError, "params must be .*got <class 'int'>"),
        (re.compile(b"x"), TypeError, "params must be .*got Pattern"),
        ({"11": 1}, TypeError, "params must be .*got dict"),
        ([3], TypeError, r"params\[0\] must be a parameter of the model, or choose some, got int"),
        ([("11.bias", None)], TypeError, r"params\[0\] must be a parameter .*named_parameters"),
        ("", ValueError, "params='' is empty"),
    ],
)  # fmt: skip
def test_what_chooses_nothing_is_refused(params, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        names(network(), params)
