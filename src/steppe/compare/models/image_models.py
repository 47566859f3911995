"""Models for images, by name, for any size of image and number of classes."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from steppe._shared.names import look_up
from steppe._shared.optional_packages import import_optional

# Channels, height, width.
Shape = tuple[int, int, int]

# Images up to this side get the first layers, and the patches, that CIFAR's 32 pixels need: those
# made for 224 would leave next to nothing of them.
_SMALL_SIDE = 64


def find_model(name: str) -> Callable[[Shape, int], nn.Module]:
    """Find the model of that name.

    Returns
    -------
    callable
        Of the images' shape and the number of classes; makes a new model, its weights drawn from
        torch's global generator. It raises a ValueError where the model cannot take that shape.

    Raises
    ------
    ValueError
        If there is none; the message lists those there are.

    Examples
    --------
    >>> model = find_model("mlp")((1, 8, 8), 10)
    >>> sum(p.numel() for p in model.parameters())
    8970
    """
    return look_up("model", name, MODELS)


def _mlp(shape: Shape, classes: int) -> nn.Module:
    """Two hidden layers of 64."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * width, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


def _small_cnn(shape: Shape, classes: int) -> nn.Module:
    """Two convolutions and two linear layers.

    Pooled before they are rectified, which gives the same numbers at a quarter of the work.
    """
    _require_side("small-cnn", shape, 4)
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


class VisionTransformer(nn.Module):
    """Dosovitskiy et al., "An Image is Worth 16×16 Words" (ICLR 2021), without dropout.

    Parameters
    ----------
    shape : tuple of int
        Channels, height and width of the images.
    classes : int
        Outputs.
    width : int
        Of a token; the hidden layer of a block is four times as wide.
    depth, heads : int
        Blocks, and attention heads in each.

    Raises
    ------
    ValueError
        If the images do not divide into patches, 4×4 up to 64 pixels and 16×16 above.
    """

    def __init__(self, shape: Shape, classes: int, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        channels, *sides = shape
        patch = 4 if max(sides) <= _SMALL_SIDE else 16
        if any(side % patch for side in sides):
            raise ValueError(
                f"image sides must be multiples of {patch} for a vision transformer, "
                f"got {sides[0]}×{sides[1]}"
            )
        patches = (sides[0] // patch) * (sides[1] // patch)
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.summary = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + patches, width))
        # Not nn.TransformerEncoder: it copies one block, so that all would start alike.
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width,
                    heads,
                    dim_feedforward=4 * width,
                    dropout=0.0,
                    activation="gelu",
                    batch_first=True,
                    norm_first=True,
                )
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return one row of class scores an image."""
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.summary.expand(len(images), -1, -1), patches), dim=1)
        scores: Tensor = self.head(self.norm(self.blocks(tokens + self.positions)[:, 0]))
        return scores


def _resnet(name: str, shape: Shape, classes: int) -> nn.Module:
    """Torchvision's ResNet (He et al. 2016), for small images with the stem of their CIFAR nets."""
    model: nn.Module = getattr(import_optional("torchvision.models"), name)(num_classes=classes)
    channels = shape[0]
    if _is_small(shape):
        model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    else:
        model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    # As torchvision draws all of a ResNet's convolutions.
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model


def _vgg16_bn(shape: Shape, classes: int) -> nn.Module:
    """Torchvision's VGG-16 with batch normalisation; for small images one linear layer on top."""
    _require_side("vgg16-bn", shape, 32)
    vgg = import_optional("torchvision.models.vgg")
    features = vgg.make_layers(vgg.cfgs["D"], batch_norm=True)
    features[0] = nn.Conv2d(shape[0], 64, 3, padding=1)
    if _is_small(shape):
        pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(features, pooled, nn.Linear(512, classes))
    model: nn.Module = vgg.VGG(features, num_classes=classes)
    if shape[1:] == (224, 224):
        # The features are 7×7 already, and pooling to 7×7 has no deterministic gradient on CUDA.
        model.avgpool = nn.Identity()
    return model


def _efficientnet_b0(shape: Shape, classes: int) -> nn.Module:
    """EfficientNet-B0 as timm builds it."""
    model: nn.Module = import_optional("timm").create_model(
        "efficientnet_b0", num_classes=classes, in_chans=shape[0]
    )
    return model


def _is_small(shape: Shape) -> bool:
    return max(shape[1:]) <= _SMALL_SIDE


def _require_side(name: str, shape: Shape, side: int) -> None:
    if min(shape[1:]) < side:
        raise ValueError(
            f"images must be at least {side}×{side} for {name}, got {shape[1]}×{shape[2]}"
        )


#: A model of images of the given shape, with that many classes, by name.
MODELS: Mapping[str, Callable[[Shape, int], nn.Module]] = {
    "mlp": _mlp,
    "small-cnn": _small_cnn,
    "small-vit": partial(VisionTransformer, width=64, depth=2, heads=4),
    "vit": partial(VisionTransformer, width=384, depth=8, heads=8),
    "resnet18": partial(_resnet, "resnet18"),
    "resnet50": partial(_resnet, "resnet50"),
    "vgg16-bn": _vgg16_bn,
    "efficientnet-b0": _efficientnet_b0,
}
