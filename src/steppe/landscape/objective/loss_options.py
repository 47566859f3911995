"""What torch's losses are divided by, as their options say."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

# Losses that divide by the weights of the targets that are not ignored.
_OF_CLASSES: tuple[Any, ...] = (F.cross_entropy, F.nll_loss, nn.CrossEntropyLoss, nn.NLLLoss)
# Losses that divide by the number of elements.
_OF_ELEMENTS: tuple[Any, ...] = (
    F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits, F.kl_div, F.poisson_nll_loss, F.soft_margin_loss,
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss,
    nn.KLDivLoss, nn.PoissonNLLLoss, nn.SoftMarginLoss,
)  # fmt: skip

#: The class that is left out of means by default.
IGNORED = -100


def loss_options(loss_fn: Any) -> dict[str, Any]:
    """Return the kind of one of torch's losses and its options, or nothing."""
    if isinstance(loss_fn, partial):
        # With arguments by position it is another function: of fixed outputs, or weighted.
        return {} if loss_fn.args else _with_reduction(loss_options(loss_fn.func), loss_fn.keywords)
    kinds = {"classes": _OF_CLASSES, "elements": _OF_ELEMENTS}
    for kind, losses in kinds.items():
        if loss_fn in losses or type(loss_fn) in losses:
            own = vars(loss_fn) | getattr(loss_fn, "_buffers", {})
            names = ("reduction", "ignore_index", "weight")
            return {"kind": kind} | {name: own[name] for name in names if name in own}
    reduction = getattr(loss_fn, "reduction", None)
    return {"reduction": reduction} if reduction == "sum" else {}


def _with_reduction(options: dict[str, Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Add keywords; the older ones, ``size_average`` and ``reduce``, stand for a reduction."""
    older = [keywords.get(name) for name in ("size_average", "reduce")]
    added = dict(keywords)
    if older != [None, None]:
        added["reduction"] = "none" if older[1] is False else "sum" if older[0] is False else "mean"
    return options | added


def weight_of_classes(targets: Tensor, options: Mapping[str, Any]) -> float:
    """Return the sum of the weights of the targets that are not ignored."""
    if targets.is_floating_point():
        # Probabilities: the mean is over targets, whose classes stand in dimension 1.
        return float(targets.numel() / targets.shape[1 if targets.ndim > 1 else 0])
    counted = targets[targets != options.get("ignore_index", IGNORED)]
    weight = options.get("weight")
    return float(counted.numel() if weight is None else weight.double()[counted].sum())
