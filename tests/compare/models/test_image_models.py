"""Models against counts of their parameters from elsewhere, and at the edge of what they take."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.torchvision_shim import torchvision
from steppe._shared.optional_packages import import_optional
from steppe.compare.models.image_models import MODELS, VisionTransformer, find_model


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def made(name: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Make a model without its numbers, which would take gigabytes for some."""
    with torch.device("meta"):
        return find_model(name)(shape, classes)


# Above 64 pixels the classical models are torchvision's, which publishes what they count.
WEIGHTS = {
    "resnet18": torchvision.models.ResNet18_Weights,
    "resnet50": torchvision.models.ResNet50_Weights,
    "vgg16-bn": torchvision.models.VGG16_BN_Weights,
    "efficientnet-b0": torchvision.models.EfficientNet_B0_Weights,
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_at_224_pixels_models_count_what_is_published(name: str) -> None:
    expected = WEIGHTS[name].IMAGENET1K_V1.meta["num_params"]
    assert parameters(made(name, (3, 224, 224), 1000)) == expected


def vgg16_of_cifar(classes: int) -> int:
    """Weights, bias and the two of batch normalisation for each convolution; a linear layer."""
    widths = [3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    convolutions = sum(9 * a * b + 3 * b for a, b in pairwise(widths))
    return convolutions + 512 * classes + classes


@pytest.mark.parametrize(
    ("name", "shape", "classes", "expected"),
    [
        ("mlp", (1, 8, 8), 10, 8_970),
        ("mlp", (3, 32, 32), 7, 3072 * 64 + 64 + 64 * 64 + 64 + 64 * 7 + 7),
        ("small-cnn", (1, 28, 28), 10, 105_866),
        ("small-cnn", (3, 32, 32), 10, 448 + 4_640 + (2048 + 1) * 64 + 650),
        # The published network for CIFAR: github.com/kuangliu/pytorch-cifar counts these.
        ("resnet18", (3, 32, 32), 10, 11_173_962),
        ("resnet50", (3, 32, 32), 10, 23_520_842),
        ("resnet18", (1, 28, 28), 10, 11_173_962 - 2 * 9 * 64),
        ("resnet18", (1, 224, 224), 1000, 11_689_512 - 2 * 49 * 64),
        ("vgg16-bn", (3, 32, 32), 100, vgg16_of_cifar(100)),
        ("efficientnet-b0", (3, 32, 32), 10, 5_288_548 - 990 * 1281),
    ],
)
def test_parameter_counts(name: str, shape, classes: int, expected: int) -> None:
    assert parameters(made(name, shape, classes)) == expected


def test_a_vision_transformer_counts_what_torchvisions_does() -> None:
    with torch.device("meta"):
        found = VisionTransformer((3, 224, 224), 1000, width=768, depth=12, heads=12)
        vit = torchvision.models.VisionTransformer(
            32, 4, num_layers=8, num_heads=8, hidden_dim=384, mlp_dim=1536, num_classes=10
        )
    base = torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1.meta["num_params"]
    assert parameters(found) == base
    assert parameters(made("vit", (3, 32, 32), 10)) == parameters(vit)
    assert parameters(made("small-vit", (1, 28, 28), 10)) == pytest.approx(100_000, rel=0.1)


def test_a_vision_transformer_computes_what_torchvisions_does() -> None:
    torch.manual_seed(0)
    ours = VisionTransformer((3, 32, 32), 10, width=32, depth=2, heads=4)
    theirs = torchvision.models.VisionTransformer(
        32, 4, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=128, num_classes=10
    )
    nn.init.normal_(ours.summary)
    # Both norms of torchvision's encoder are to 1e-6.
    for module in ours.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    names = {
        "class_token": "summary",
        "conv_proj": "patches",
        "encoder.pos_embedding": "positions",
        "encoder.layers.encoder_layer_": "blocks.",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "self_attention": "self_attn",
        "mlp.0": "linear1",
        "mlp.3": "linear2",
        "encoder.ln": "norm",
        "heads.head": "head",
    }

    def ours_of(name: str) -> str:
        for their, our in names.items():
            name = name.replace(their, our)
        return name

    state = ours.state_dict()
    theirs.load_state_dict({name: state[ours_of(name)] for name in theirs.state_dict()})
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images))


def test_the_blocks_of_a_vision_transformer_start_different() -> None:
    first, second = find_model("small-vit")((1, 8, 8), 10).blocks  # type: ignore[misc]
    for name in ("self_attn.in_proj_weight", "linear1.weight"):
        assert not torch.equal(first.get_parameter(name), second.get_parameter(name))


SMALLEST = {
    "mlp": (1, 1, 1),
    "small-cnn": (2, 4, 4),
    "small-vit": (1, 4, 4),
    "vit": (1, 4, 8),
    "resnet18": (1, 8, 8),
    "resnet50": (1, 8, 8),
    "vgg16-bn": (1, 32, 32),
    "efficientnet-b0": (1, 8, 8),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_step_reaches_every_parameter(name: str) -> None:
    shape = SMALLEST[name]
    torch.manual_seed(0)
    model = find_model(name)(shape, 3)
    torch.manual_seed(0)
    twin = find_model(name)(shape, 3)
    assert all(map(torch.equal, model.state_dict().values(), twin.state_dict().values()))

    outputs = model(torch.randn(4, *shape))
    assert outputs.shape == (4, 3)
    F.cross_entropy(outputs, torch.tensor([0, 1, 2, 1])).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", ["small-vit", "resnet18"])
@pytest.mark.parametrize("side", [64, 80])
def test_small_and_large_images_have_their_own_first_layer(name: str, side: int) -> None:
    model = find_model(name)((3, side, side), 2)
    shapes: list[torch.Size] = []
    layer = model.patches if name == "small-vit" else model.layer1
    layer.register_forward_hook(lambda *call: shapes.append(call[-1].shape[2:]))  # type: ignore
    model(torch.zeros(2, 3, side, side))
    expected = {
        ("small-vit", 64): (16, 16),
        ("small-vit", 80): (5, 5),
        ("resnet18", 64): (64, 64),
        ("resnet18", 80): (20, 20),
    }
    assert shapes == [expected[name, side]]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("side", [32, 224])
def test_a_resnets_stem_starts_like_its_other_convolutions(name: str, side: int) -> None:
    torch.manual_seed(0)
    weight = find_model(name)((3, side, side), 10).conv1.weight
    deviation = (2 / (weight[0, 0].numel() * 64)) ** 0.5
    assert weight.std().item() == pytest.approx(deviation, rel=0.05)
    assert weight.abs().max() > 2.5 * deviation  # normal, not uniform


@pytest.mark.parametrize("side", [224, 256])
def test_large_images_pass_through_vgg(side: int) -> None:
    model = made("vgg16-bn", (1, side, side), 10)
    assert model(torch.empty(2, 1, side, side, device="meta")).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("vgg16-bn", (3, 28, 28), "must be at least 32×32 for vgg16-bn, got 28×28"),
        ("small-cnn", (1, 3, 9), "must be at least 4×4 for small-cnn, got 3×9"),
        ("vit", (3, 30, 32), "must be multiples of 4 for a vision transformer, got 30×32"),
        (
            "small-vit",
            (3, 224, 230),
            "must be multiples of 16 for a vision transformer, got 224×230",
        ),
    ],
)
def test_what_a_model_cannot_take_is_refused(name: str, shape, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_model(name)(shape, 10)


def test_an_unknown_model_gets_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean resnet18"):
        find_model("resnet-18")


@pytest.mark.parametrize(
    ("name", "package"), [("resnet18", "torchvision"), ("efficientnet-b0", "timm")]
)
def test_a_missing_package_is_named(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [each for each in sys.modules if each.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError) as caught:
        find_model(name)((3, 32, 32), 10)
    assert (caught.value.name or "").partition(".")[0] == package


def test_a_package_that_does_not_fit_torch_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unfitting.py").write_text("raise RuntimeError('operator x::y does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"unfitting does not fit torch .*operator x::y does not"):
        import_optional("unfitting")
