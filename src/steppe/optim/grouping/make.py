"""Make parameter groups of a model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import Module

from steppe._shared.validation import check_number
from steppe.optim._options import check_options, to_plain
from steppe.optim.grouping.exempt import is_exempt
from steppe.optim.grouping.groups import Group, ParamGroups
from steppe.optim.grouping.layers import layers_of, timm_layers
from steppe.optim.grouping.named import NamedParam, named_params
from steppe.optim.grouping.rules import (
    Options,
    Selector,
    check_all_match,
    checked_rules,
)


def param_groups(
    model: Module,
    rules: Mapping[Selector, Options] | None = None,
    *,
    no_decay: bool = False,
    layer_decay: float | None = None,
    lr: float | Tensor | None = None,
    layers: Callable[[str], int] | None = None,
) -> ParamGroups:
    r"""Sort a model's parameters into groups, for any optimizer of torch or of this library.

    A parameter's options come from, each overriding those before::

        lr, multiplied by layer_decay^(L − l) in layer l of 0 … L
        no_decay, which gives weight_decay = 0 to some
        rules, in their order

    so a rule has the last word: an lr that it names is taken as it is, whatever the layer. What no
    group names, such as ``lr`` without ``lr=``, takes what the optimizer is given.

    Parameters
    ----------
    model
        The model. Its frozen parameters, those with ``requires_grad=False``, are left out; shared
        ones come once, and a rule may match any of their names.
    rules
        Options by what gets them: a regular expression, which is searched in a parameter's full
        name, or a module type, whose modules' own parameters get them (those of a module inside are
        not its own). Default: None, no rules.
    no_decay
        Whether ``weight_decay`` is 0 for biases, for parameters of normalisation layers, for others
        of fewer than two dimensions, and for embeddings: those of ``torch.nn.Embedding`` and
        ``EmbeddingBag``, and parameters called as ``pos_embed`` or ``cls_token`` are. Default:
        False.
    layer_decay
        The factor in (0, 1] by which each layer's learning rate is smaller than that of the next
        one. Default: None, which is one rate for all.
    lr
        The learning rate of the last layer, ≥ 0; needed with ``layer_decay``. Without it all have
        it. Default: None, the optimizer's.
    layers
        Returns a parameter's layer, an integer ≥ 0, given its full name. Default: None, which takes
        the layers of timm's ``param_groups_layer_decay`` for a model of timm that has a
        ``group_matcher``, and of others finds them by the first part of a name that is a number:
        ``blocks.3``, ``encoder.layer.5`` and ``layer1.0`` are a layer each, in the order of
        registration. What comes before the first one is layer 0, and what has no number between
        them is in the layer before it. What comes after the last one is the head, in a layer of its
        own, but for normalisation layers, which belong to the last one.

    Returns
    -------
    ParamGroups
        A list of groups, with pairs of name and parameter as ``params``, so that checkpoints hold
        ``param_names``. Parameters with equal options share a group; the order is that of
        registration. ``print`` shows a table, and ``parameter_counts`` has the numbers of
        parameters.

    Raises
    ------
    TypeError
        An argument is of a wrong type.
    ValueError
        A rule matches nothing, is no regular expression, or has an option out of its range;
        ``layer_decay`` comes without ``lr``, ``layers`` without ``layer_decay``, or all parameters
        are in one layer; the model has no parameters, all are frozen, or some are of a lazy module.

    References
    ----------
    Layer-wise decay: Bao et al., *BEiT*, ICLR 2022, arXiv 2106.08254.

    Examples
    --------
    >>> import torch, steppe
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2)
    ... )
    >>> rules = {r"^2\.": {"lr": 1e-2}}
    >>> groups = steppe.optim.param_groups(model, rules, no_decay=True)
    >>> groups
    group  weight_decay       lr  tensors  parameters  names
        0       default  default        1          32  0.weight
        1             0  default        3          24  *.bias, 1.weight
        2       default     0.01        1          16  2.weight
        3             0     0.01        1           2  2.bias
    >>> optimizer = steppe.DualAdam(groups, lr=1e-3, weight_decay=0.05)
    """
    if not isinstance(no_decay, bool):
        raise TypeError(f"no_decay must be True or False, got {no_decay!r}")
    _check_layer_decay(layer_decay, lr, layers)
    checked = checked_rules(rules)
    params = named_params(model)
    check_all_match(checked, params)
    scales = _scales(params, layer_decay, layers or timm_layers(model))
    trained = [each for each in zip(params, scales, strict=True) if each[0].param.requires_grad]
    if not trained:
        raise ValueError(
            f"model has no parameters to train, all {len(params)} are frozen: expected one with "
            "requires_grad=True"
        )
    # A tensor for each scale, not for each parameter: groups share what is the same object.
    rates = {scale: _scaled(to_plain(lr), scale) for scale in scales}
    groups: list[Group] = []
    for each, scale in trained:
        options: dict[str, Any] = {} if lr is None else {"lr": rates[scale]}
        if no_decay and is_exempt(each):
            options["weight_decay"] = 0.0
        for rule in checked:
            if rule.matches(each):
                options |= rule.options
        _group_with(options, groups)["params"].append((each.name, each.param))
    return ParamGroups(groups)


def _check_layer_decay(
    layer_decay: float | None, lr: float | Tensor | None, layers: Callable[[str], int] | None
) -> None:
    if lr is not None:
        check_options({"lr": to_plain(lr)})
    if layers is not None and not callable(layers):
        raise TypeError(f"layers must be a function of a parameter's name, got {layers!r}")
    if layer_decay is None:
        if layers is not None:
            raise ValueError("layers without layer_decay does nothing: expected layer_decay too")
        return
    check_number(layer_decay=layer_decay)
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be a number in (0, 1], got {layer_decay}")
    if lr is None:
        raise ValueError(
            f"layer_decay={layer_decay} needs lr, the learning rate of the last layer: got lr=None"
        )


def _scales(
    params: Sequence[NamedParam], layer_decay: float | None, layers: Callable[[str], int] | None
) -> list[float]:
    if layer_decay is None:
        return [1.0] * len(params)
    found = layers_of(params, layers)
    last = max(found)
    return [float(layer_decay) ** (last - layer) for layer in found]


def _scaled(lr: Any, scale: float) -> Any:
    return lr if lr is None or scale == 1.0 else lr * scale


def _group_with(options: dict[str, Any], groups: list[Group]) -> Group:
    """Return the group with exactly these options, which is added if there is none."""
    # The next parameter is most often in one of the last groups, and there may be hundreds.
    for group in reversed(groups):
        if group.keys() - {"params"} == options.keys() and all(
            _is_same(group[name], value) for name, value in options.items()
        ):
            return group
    groups.append({"params": [], **options})
    return groups[-1]


def _is_same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor | np.ndarray) or isinstance(other, Tensor | np.ndarray):
        return False
    # True is 1 in Python, and another value to an optimizer.
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
