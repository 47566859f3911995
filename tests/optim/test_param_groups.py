"""param_groups: groups as written by hand, in every optimizer, and as timm's."""

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import steppe
from helpers.optimizer_configs import REPRESENTATIVE, equal, values
from steppe.optim import Offload, ParamGroups, param_groups

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    **{str(config): config for config in REPRESENTATIVE},
    "AdamW": torch.optim.AdamW,
    "SGD": torch.optim.SGD,
    "SAM": lambda params, **k: steppe.SAM(torch.optim.AdamW(params, **k), required=False),
    "SAM of parameters": lambda params, **k: steppe.SAM(params, required=False, **k),
    "Offload": lambda params, **k: Offload(params, steppe.DualAdam, **k),
}


_BLOCKS = ("python", "text")


class Tower(nn.Module):
    """Embeddings, two numbered blocks, a final normalisation and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.pos_embed = nn.Parameter(torch.zeros(1, 3, 4))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU()) for _ in range(2)
        )
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        found = self.embed(tokens) + self.pos_embed
        for block in self.blocks:
            found = found + block(found)
        return self.head(self.norm(found))


def tower() -> Tower:
    torch.manual_seed(0)
    return Tower()


def names_in(groups: list[dict[str, Any]]) -> list[list[str]]:
    return [[name for name, _ in group["params"]] for group in groups]


def options_by_name(groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: {k: v for k, v in group.items() if k != "params"}
        for group in groups
        for name, _ in group["params"]
    }


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        tokens = torch.randint(7, (6, 3), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten() % 5).backward()
        optimizer.step()


def by_hand(model: Tower) -> list[dict[str, Any]]:
    """Return what ``made`` makes, written out: layers 0 to 3, of which 1 and 2 are blocks."""
    b = model.blocks
    return [
        {
            "params": [model.embed.weight, model.pos_embed],
            "lr": 0.01 * 0.5**3,
            "weight_decay": 0.0,
        },
        {
            "params": [b[0][0].weight, b[0][0].bias, b[0][1].bias],
            "lr": 0.01 * 0.5**2,
            "weight_decay": 0.0,
        },
        {"params": [b[0][1].weight], "lr": 0.01 * 0.5**2},
        {
            "params": [b[1][0].weight, b[1][0].bias, b[1][1].bias, *model.norm.parameters()],
            "lr": 0.01 * 0.5,
            "weight_decay": 0.0,
        },
        {"params": [b[1][1].weight], "lr": 0.01 * 0.5},
        {"params": [model.head.weight], "lr": 0.03, "weight_decay": 0.2},
        {"params": [model.head.bias], "lr": 0.03, "weight_decay": 0.0},
    ]


def made(model: Tower) -> ParamGroups:
    rules = {
        r"^head\.": {"lr": 0.03},
        nn.Linear: {},
        re.compile(r"head\.weight"): {"weight_decay": 0.2},
    }
    return param_groups(model, rules, no_decay=True, layer_decay=0.5, lr=0.01)


def aligned(hand: list[dict[str, Any]], groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the groups by hand in the order of the others: registration's, by first name."""
    firsts = [id(group["params"][0][1]) for group in groups]
    places = {id(param): number for number, group in enumerate(hand) for param in group["params"]}
    return [hand[places[first]] for first in firsts]


def test_groups_are_those_by_hand() -> None:
    model = tower()
    groups = made(model)
    hand = by_hand(model)
    assert len(groups) == len(hand)
    for one, other in zip(groups, aligned(hand, groups), strict=True):
        assert {id(param) for _, param in one["params"]} == set(map(id, other["params"]))
        assert {k: v for k, v in one.items() if k != "params"} == {
            k: v for k, v in other.items() if k != "params"
        }


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_is_that_of_groups_by_hand(make: Callable[..., Any]) -> None:
    ours, theirs = tower(), tower()
    optimizer = make(made(ours), lr=0.02, weight_decay=0.1)
    in_order = dict(theirs.named_parameters())
    hand = aligned(by_hand(theirs), made(theirs))
    for group, names in zip(hand, names_in(made(theirs)), strict=True):
        group["params"] = [in_order[name] for name in names]
    other = make(hand, lr=0.02, weight_decay=0.1)
    train(ours, optimizer, range(3))
    train(theirs, other, range(3))
    assert equal(values([*ours.parameters()]), values([*theirs.parameters()]))


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_checkpoints_hold_names_and_resume(make: Callable[..., Any]) -> None:
    whole, first = tower(), tower()
    optimizer = make(made(whole), lr=0.02)
    train(whole, optimizer, range(4))
    half = make(made(first), lr=0.02)
    train(first, half, range(2))
    saved = copy.deepcopy((first.state_dict(), half.state_dict()))
    names = [group["param_names"] for group in saved[1]["param_groups"]]
    assert names == names_in(made(whole))
    second = tower()
    second.load_state_dict(saved[0])
    resumed = make(made(second), lr=0.02)
    resumed.load_state_dict(saved[1])
    train(second, resumed, range(2, 4))
    assert equal(values([*second.parameters()]), values([*whole.parameters()]))


def test_groups_without_options_are_one() -> None:
    model = tower()
    (group,) = param_groups(model)
    assert group.keys() == {"params"}
    pairs = list(model.named_parameters())
    assert [name for name, _ in group["params"]] == [name for name, _ in pairs]
    assert [id(param) for _, param in group["params"]] == [id(param) for _, param in pairs]


def test_lr_alone_is_that_of_all() -> None:
    (group,) = param_groups(tower(), lr=0.5)
    assert group["lr"] == 0.5


def test_later_rules_override_earlier_ones() -> None:
    found = options_by_name(
        param_groups(
            tower(),
            {
                "": {"lr": 1.0, "weight_decay": 1.0, "betas": [0.5, 0.9]},
                nn.LayerNorm: {"weight_decay": 0.5},
                r"norm\.bias": {"weight_decay": 0.25},
            },
        )
    )
    assert found["head.weight"] == {"lr": 1.0, "weight_decay": 1.0, "betas": (0.5, 0.9)}
    assert found["norm.weight"]["weight_decay"] == 0.5
    assert found["norm.bias"]["weight_decay"] == 0.25
    assert found["blocks.1.0.bias"]["weight_decay"] == 0.5


def test_frozen_parameters_are_left_out_and_count_as_layers() -> None:
    model = tower()
    model.blocks[1].requires_grad_(False)
    model.head.requires_grad_(False)
    groups = param_groups(model, {"head": {"lr": 1.0}}, layer_decay=0.5, lr=1.0)
    found = {name: options["lr"] for name, options in options_by_name(groups).items()}
    assert found == {
        "embed.weight": 0.125,
        "pos_embed": 0.125,
        **{f"blocks.0.{n}": 0.25 for n in ("0.weight", "0.bias", "1.weight", "1.bias")},
        "norm.weight": 0.5,
        "norm.bias": 0.5,
    }


def test_shared_parameters_come_once_and_any_name_matches() -> None:
    model = nn.Module()
    model.embed = nn.Embedding(3, 2)
    model.head = nn.Linear(2, 3, bias=False)
    model.head.weight = model.embed.weight
    groups = param_groups(model, {"head": {"lr": 1.0}}, no_decay=True)
    assert names_in(groups) == [["embed.weight"]]
    assert groups[0]["lr"] == 1.0
    assert groups[0]["weight_decay"] == 0.0
    assert param_groups(model, {nn.Linear: {"lr": 2.0}})[0]["lr"] == 2.0
    assert groups.parameter_counts == [6]


class OwnRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, 2))


class Odd(nn.Module):
    """What decays, and what does not, by other names and in other shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 3, 4))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(3, 4))
        self.temperature = nn.Parameter(torch.ones(()))
        self.patch_embed = nn.Conv2d(3, 4, 2)
        self.bag = nn.EmbeddingBag(3, 4)
        self.wide_norm = nn.LayerNorm((2, 4))
        self.own = OwnRMSNorm()
        self.group_norm = nn.GroupNorm(2, 4)
        self.batch_norm = nn.BatchNorm2d(4)
        self.rnn = nn.LSTM(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.bilinear = nn.Bilinear(2, 2, 2)
        self.unbiased = nn.Linear(4, 4, bias=False)


def test_no_decay_is_for_biases_norms_small_ones_and_embeddings() -> None:
    found = options_by_name(param_groups(Odd(), no_decay=True))
    decayed = {name for name, options in found.items() if "weight_decay" not in options}
    assert decayed == {
        "patch_embed.weight",
        "rnn.weight_ih_l0",
        "rnn.weight_hh_l0",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "bilinear.weight",
        "unbiased.weight",
    }
    assert all(found[n] == {"weight_decay": 0.0} for n in found.keys() - decayed)


def test_a_rule_decays_what_no_decay_does_not() -> None:
    found = options_by_name(
        param_groups(tower(), {nn.Embedding: {"weight_decay": 0.3}}, no_decay=True)
    )
    assert found["embed.weight"] == {"weight_decay": 0.3}
    assert found["pos_embed"] == {"weight_decay": 0.0}


def test_parametrized_parameters_are_their_modules_own() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 3)), nn.Embedding(3, 2))
    parametrize.register_parametrization(model[1], "weight", nn.Identity())
    found = options_by_name(param_groups(model, {nn.Linear: {"lr": 1.0}}, no_decay=True))
    assert found["0.parametrizations.weight.original1"] == {"lr": 1.0}
    assert found["0.bias"] == {"lr": 1.0, "weight_decay": 0.0}
    assert found["1.parametrizations.weight.original"] == {"weight_decay": 0.0}


def layers(model: nn.Module, **options: Any) -> dict[str, int]:
    """Return each parameter's distance from the last layer."""
    found = options_by_name(param_groups(model, layer_decay=0.5, lr=1.0, **options))
    return {name: round(-torch.tensor(o["lr"]).log2().item()) for name, o in found.items()}


def test_layers_between_and_around_numbers() -> None:
    model = nn.Module()
    model.stem = nn.Linear(1, 1, bias=False)
    model.encoder = nn.ModuleList([nn.Linear(1, 1, bias=False)] * 1)
    model.middle = nn.Linear(1, 1, bias=False)
    model.decoder = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(2))
    model.final = nn.LayerNorm(1, bias=False)
    model.head = nn.Linear(1, 1, bias=False)
    assert layers(model) == {
        "stem.weight": 4,
        "encoder.0.weight": 3,
        "middle.weight": 3,
        "decoder.0.weight": 2,
        "decoder.1.weight": 1,
        "final.weight": 1,
        "head.weight": 0,
    }


def test_layers_of_a_sequence_are_its_numbers() -> None:
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(3)))
    assert layers(model) == {"0.weight": 2, "1.weight": 1, "2.weight": 0}


def test_layers_may_be_given() -> None:
    found = layers(tower(), layers=lambda name: 5 if name.startswith("head") else 3)
    assert {found.pop(name) for name in ("head.weight", "head.bias")} == {0}
    assert set(found.values()) == {2}


def test_a_tensor_lr_is_one_for_each_layer() -> None:
    groups = param_groups(tower(), layer_decay=0.5, lr=torch.tensor(1.0))
    assert [float(group["lr"]) for group in groups] == [0.125, 0.25, 0.5, 1.0]


LAZY = nn.Sequential(nn.Linear(2, 3), nn.LazyLinear(2))


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": [torch.ones(2)]}, TypeError, "model must be a torch.nn.Module, got a list"),
        ({"model": nn.ReLU()}, ValueError, "this ReLU has none"),
        ({"model": LAZY}, ValueError, "1.weight is a parameter of a lazy module.*run a batch"),
        ({"model": tower().requires_grad_(False)}, ValueError, "all 14 are frozen"),
        ({"rules": [("head", {})]}, TypeError, "rules must map .*got a list"),
        ({"rules": {"tail": {"lr": 1.0}}}, ValueError, "rule 'tail' matches no.*pos_embed.*more"),
        ({"rules": {nn.Conv2d: {}}}, ValueError, "rule Conv2d matches no parameter: a module type"),
        ({"rules": {nn.Sequential: {}}}, ValueError, "hold themselves, not those of modules insid"),
        ({"rules": {"head(": {}}}, ValueError, r"rule 'head\(' is not a regular expression"),
        ({"rules": {7: {}}}, TypeError, "regular expression or a module type, got 7"),
        ({"rules": {Tensor: {}}}, TypeError, "regular expression or a module type, got <class"),
        ({"rules": {re.compile(b"a"): {}}}, TypeError, "regular expression or a module type"),
        ({"rules": {"head": 0.1}}, TypeError, "rule 'head' must give options by name.*0.1"),
        ({"rules": {"head": {1: 2}}}, TypeError, "rule 'head' has an option 1"),
        ({"rules": {"head": {"params": []}}}, ValueError, "'params', which a group has by itself"),
        ({"rules": {"head": {"lr": -1.0}}}, ValueError, "lr=-1.0 is not valid in rule 'head'"),
        ({"rules": {"head": {"weight_decay": "0"}}}, ValueError, "weight_decay='0' is not valid"),
        ({"no_decay": 1}, TypeError, "no_decay must be True or False, got 1"),
        ({"lr": float("nan")}, ValueError, "lr=nan is not valid"),
        ({"layer_decay": 0.5}, ValueError, "layer_decay=0.5 needs lr"),
        ({"layer_decay": 1.5, "lr": 1.0}, ValueError, r"layer_decay must be .*\(0, 1\], got 1.5"),
        ({"layer_decay": True, "lr": 1.0}, TypeError, "layer_decay must be a number, got True"),
        ({"layers": len}, ValueError, "layers without layer_decay"),
        ({"layer_decay": 0.5, "lr": 1.0, "layers": 3}, TypeError, "layers must be a function.*3"),
        (
            {"layer_decay": 0.5, "lr": 1.0, "layers": str},
            TypeError,
            r"layers\('pos_embed'\) must be an integer, got 'pos_embed'",
        ),
        (
            {"layer_decay": 0.5, "lr": 1.0, "layers": lambda name: -1},
            ValueError,
            r"layers\('pos_embed'\) must be at least 0, got -1",
        ),
        (
            {"layer_decay": 0.5, "lr": 1.0, "layers": lambda name: 2},
            ValueError,
            "layer_decay would change nothing.*give layers=",
        ),
        (
            {"model": nn.Linear(2, 2), "layer_decay": 0.5, "lr": 1.0},
            ValueError,
            "no two names differ in their first number, from weight to bias",
        ),
    ],
)
def test_wrong_arguments_are_refused_by_name(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        param_groups(**{"model": tower(), **arguments})


def test_the_table_says_what_went_where() -> None:
    groups = made(tower())
    expected = """
group       lr  weight_decay  tensors  parameters  names
    0  0.00125             0        2          40  pos_embed, embed.weight
    1   0.0025             0        3          12  blocks.0.0.weight, blocks.0.*.bias
    2   0.0025       default        1          16  blocks.0.1.weight
    3    0.005             0        5          20  blocks.1.0.weight, blocks.1.*.bias, {norm}
    4    0.005       default        1          16  blocks.1.1.weight
    5     0.03           0.2        1          20  head.weight
    6     0.03             0        1           5  head.bias"""
    assert f"\n{groups}" == expected.format(norm="norm.weight, norm.bias")
    assert str(param_groups(nn.Sequential(*(nn.PReLU() for _ in range(3))))).endswith("  *.weight")
    many = nn.ModuleDict({c: nn.PReLU() for c in "abcdef"})
    listed = "a.weight, b.weight, c.weight, d.weight and 2 more"
    assert str(param_groups(many)).endswith(listed)


def test_the_table_has_the_same_columns_when_an_optimizer_of_torch_has_the_groups() -> None:
    groups = made(tower())
    before = groups._repr_html_()
    torch.optim.AdamW(groups, weight_decay=0.125)
    assert groups[0]["betas"] == (0.9, 0.999)
    html = groups._repr_html_()
    assert html == before.replace("default", "0.125")
    assert html.count("<tr>") == 1 + len(groups)
    assert "blocks.0.1.weight" in html


def test_groups_are_a_list_that_is_copied_and_extended() -> None:
    groups = made(tower())
    copied = pickle.loads(pickle.dumps(groups))
    assert type(copied) is ParamGroups
    assert str(copied) == str(groups)
    groups.append({"params": [nn.Parameter(torch.ones(3))], "lr": 0.5})
    assert str(groups).splitlines()[-1].split() == ["7", "0.5", "default", "1", "3"]
    assert groups.parameter_counts[-1] == 3


KINDS = (nn.Linear, nn.LayerNorm, nn.Embedding)


@st.composite
def models(draw: st.DrawFn) -> nn.Module:
    """Draw stacks of small layers, some of them frozen and some of them the same."""
    made: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 6))):
        if made and draw(st.integers(0, 4)) == 0:
            made.append(draw(st.sampled_from(made)))
            continue
        kind = draw(st.sampled_from(KINDS))
        layer = kind(2) if kind is nn.LayerNorm else kind(2, 2)
        made.append(layer.requires_grad_(draw(st.integers(0, 3)) > 0))
    model = nn.Module()
    for number, layer in enumerate(made):
        prefix = draw(st.sampled_from(["stem", "blocks", "head"]))
        if prefix not in model._modules:
            model.add_module(prefix, nn.Module())
        getattr(model, prefix).add_module(str(number), layer)
    return model


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "lr": st.sampled_from([0.1, 1.0]),
        "weight_decay": st.sampled_from([0, 0.0, 0.1]),
        "amsgrad": st.booleans(),
    },
)
RULES = st.dictionaries(
    st.sampled_from(["", "weight", "bias", "stem", "head", "0", *KINDS]), OPTIONS, max_size=4
)


def expected_options(
    model: nn.Module, rules: dict[Any, dict[str, Any]], no_decay: bool
) -> dict[int, dict[str, Any]]:
    """Return what each parameter gets, found by modules and not by parameters."""
    found: dict[int, dict[str, Any]] = {}
    holders: dict[int, list[tuple[str, nn.Module]]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, param in module._parameters.items():
            if param is not None and param.requires_grad:
                holders.setdefault(id(param), []).append((f"{prefix}.{name}", module))
    for key, held in holders.items():
        weights_of_linear = all(
            isinstance(module, nn.Linear) and name.endswith("weight") for name, module in held
        )
        options = {"weight_decay": 0.0} if no_decay and not weights_of_linear else {}
        for selector, own in rules.items():
            for name, module in held:
                if (selector in name) if isinstance(selector, str) else type(module) is selector:
                    options.update(own)
        found[key] = options
    return found


@settings(deadline=None)
@given(models(), RULES, st.booleans())
def test_any_model_and_any_rules(
    model: nn.Module, rules: dict[Any, dict[str, Any]], no_decay: bool
) -> None:
    expected = expected_options(model, rules, no_decay)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    kinds = {type(module) for module in model.modules()}
    if not all(s in kinds or (isinstance(s, str) and any(s in n for n in names)) for s in rules):
        with pytest.raises(ValueError, match="matches no parameter"):
            param_groups(model, rules, no_decay=no_decay)
        return
    if not expected:
        with pytest.raises(ValueError, match="frozen"):
            param_groups(model, rules, no_decay=no_decay)
        return
    groups = param_groups(model, rules, no_decay=no_decay)
    found = {
        id(param): {k: v for k, v in group.items() if k != "params"}
        for group in groups
        for _, param in group["params"]
    }
    assert found == expected
    # Each once, named by its first name; equal options in one group; by registration.
    pairs = [(name, id(param)) for group in groups for name, param in group["params"]]
    registered = [(n, id(p)) for n, p in model.named_parameters() if p.requires_grad]
    assert sorted(pairs) == sorted(registered)
    order = {key: number for number, (_, key) in enumerate(registered)}
    firsts = [order[id(group["params"][0][1])] for group in groups]
    assert firsts == sorted(firsts)
    for group in groups:
        within = [order[id(param)] for _, param in group["params"]]
        assert within == sorted(within)
    distinct = {
        tuple(sorted((k, type(v) is bool, v) for k, v in options.items()))
        for options in expected.values()
    }
    assert len(groups) == len(distinct)
    assert sum(groups.parameter_counts) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


@settings(deadline=None)
@given(st.integers(2, 6), st.floats(0.01, 1.0), st.floats(0.0, 10.0))
def test_layer_decay_is_a_power_of_the_distance_to_the_head(
    depth: int, decay: float, lr: float
) -> None:
    model = nn.Module()
    model.stem = nn.Linear(1, 1, bias=False)
    model.layer = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(depth))
    model.head = nn.Linear(1, 1, bias=False)
    found = options_by_name(param_groups(model, layer_decay=decay, lr=lr))
    rates = [found[name]["lr"] for name, _ in model.named_parameters()]
    assert rates == pytest.approx([lr * decay**n for n in range(depth + 1, -1, -1)])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_layer_decay_is_timms(name: str) -> None:
    pytest.importorskip("helpers.torchvision_shim")
    timm = pytest.importorskip("timm")
    from timm.optim import param_groups_layer_decay

    from helpers import torchvision_shim  # noqa: F401 - before timm

    sizes = {"img_size": 32, "patch_size": 8, "depth": 3} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=10, **sizes)
    kept = getattr(model, "no_weight_decay", set)()
    theirs = {
        id(param): (0.1 * group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(model, 0.05, kept, layer_decay=0.7)
        for param in group["params"]
    }
    ours = {
        id(param): (group["lr"], group.get("weight_decay", 0.05))
        for group in param_groups(model, no_decay=True, layer_decay=0.7, lr=0.1)
        for _, param in group["params"]
    }
    assert ours.keys() == theirs.keys()
    assert all(ours[key] == pytest.approx(theirs[key]) for key in theirs)


SMALL = {"depth": 3, "embed_dim": 32, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("resnet18d", {}),
        ("resnetv2_50", {"layers": (1, 2, 1, 1)}),
        ("convnext_atto", {}),
        ("beit_base_patch16_224", SMALL),
        ("vit_relpos_small_patch16_224", SMALL),
        ("vit_base_patch16_siglip_224", SMALL),
        ("mobilenetv3_small_050", {}),
    ],
)
def test_rates_of_timms_models_are_timms(name: str, sizes: dict[str, Any]) -> None:
    pytest.importorskip("helpers.torchvision_shim")
    timm = pytest.importorskip("timm")
    from timm.optim import param_groups_layer_decay

    from helpers import torchvision_shim  # noqa: F401 - before timm

    model = timm.create_model(name, num_classes=10, **sizes)
    theirs = {
        id(param): group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.75)
        for param in group["params"]
    }
    groups = param_groups(model, layer_decay=0.75, lr=1.0)
    ours = {id(param): group["lr"] for group in groups for _, param in group["params"]}
    assert ours == pytest.approx(theirs, rel=1e-12)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.head = nn.Linear(2, 1)


class NoMatcher(Blocks):
    group_matcher = None


class OtherMatcher(Blocks):
    def group_matcher(self) -> dict[str, str]:
        return {"blocks": "none of these"}


@pytest.mark.parametrize("make", [NoMatcher, OtherMatcher])
def test_a_matcher_that_is_not_timms_is_left_alone(make: Any) -> None:
    found, truth = (
        [g["lr"] for g in param_groups(model, layer_decay=0.75, lr=1.0)]
        for model in (make(), Blocks())
    )
    assert found == truth


def test_a_compiled_model_of_timm_has_its_layers() -> None:
    pytest.importorskip("helpers.torchvision_shim")
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_relpos_small_patch16_224", num_classes=10, **SMALL)
    groups, compiled = (
        param_groups(each, layer_decay=0.75, lr=1.0)
        for each in (model, torch.compile(model, backend="eager"))
    )
    rates = [{id(p): g["lr"] for g in each for _, p in g["params"]} for each in (groups, compiled)]
    assert rates[0] == rates[1]


def test_options_that_no_optimizer_has_are_told() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with pytest.warns(UserWarning, match=r"'learning_rate', which no optimizer of torch.*lr"):
        groups = param_groups(model, {"0": {"learning_rate": 0.1}})
    assert groups[0]["learning_rate"] == 0.1
    for name in ("lr", "sam_rho", "metric", "lr_scale", "nesterov", "capacity", "max_lr"):
        param_groups(model, {"0": {name: 0.1}})


def test_the_page_shows_the_table_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    section = page.split("## Parameter groups")[1]
    code, table = (re.search(rf"```{kind}\n(.*?)```", section, re.S)[1] for kind in _BLOCKS)
    exec(compile(code, "training.md", "exec"), {})
    assert capsys.readouterr().out == table
