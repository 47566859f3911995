"""Find optimizers by name; the names are the same for all commands.

:mod:`steppe._shared.recipes` builds optimizers with it, and ``steppe bench`` those that it times. A
name is a preset of this file, a class of steppe or torch.optim, a baseline of another package, or
the path of any class.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from steppe._shared.names import unknown_name_message
from steppe._shared.optimizer_classes import available, imported

#: The name of a class in lower case, or its path, and arguments for its constructor.
NamedArguments = tuple[str, Mapping[str, Any]]

#: What each preset stands for, by its name.
PRESETS: Mapping[str, NamedArguments] = {
    "adamcm-authors": ("adamcm", {"variant": "authors"}),
    "adamcm-bf16": ("adamcm", {"state_dtype": torch.bfloat16}),
    "adamcm-int8": ("adamcm", {"state_dtype": "int8"}),
    "dualadam-bf16": ("dualadam", {"state_dtype": torch.bfloat16}),
    "dualadam-int8": ("dualadam", {"state_dtype": "int8"}),
    "dualadam-scale-free": ("dualadam", {"scale_free": True}),
    "sgd-momentum": ("sgd", {"momentum": 0.9}),
}

# Baselines of packages that are imported only if they are named. torch has a Muon too, but for
# matrices alone: no model consists of them.
_ELSEWHERE = {
    "adabelief": "pytorch_optimizer:AdaBelief",
    "adabound": "pytorch_optimizer:AdaBound",
    "adan": "pytorch_optimizer:Adan",
    "lion": "pytorch_optimizer:Lion",
    "muon": "steppe._shared.muon:MuonWithAdamW",
    "schedule-free": "schedulefree:AdamWScheduleFree",
}


def find_optimizer(
    name: str, presets: Mapping[str, NamedArguments] = PRESETS
) -> tuple[type[Optimizer], Mapping[str, Any]]:
    """Return the class that a name means, and the arguments that the name stands for.

    Parameters
    ----------
    name : str
        A preset, a class of steppe or torch.optim, one of AdaBelief, AdaBound, Adan and Lion of the
        package pytorch_optimizer, muon (its Muon for matrices, with AdamW for the rest), or
        schedule-free (AdamWScheduleFree of the package schedulefree), all in any case; or
        ``package.module:Class``.
    presets : mapping, default PRESETS
        The presets that are allowed.

    Raises
    ------
    ValueError
        There is no such optimizer, and the message lists the names; or the class cannot be
        imported.

    Examples
    --------
    >>> find_optimizer("DualAdam-int8")
    (<class 'steppe.optim.dual_adam.DualAdam'>, {'state_dtype': 'int8'})
    """
    base, arguments = presets.get(name.lower(), (name, {}))
    if ":" in base:
        return imported(base), arguments
    classes, base = available(), base.lower()
    if base in _ELSEWHERE:
        return imported(_ELSEWHERE[base]), arguments
    if base in classes:
        return classes[base], arguments
    known = {*classes, *presets, *_ELSEWHERE}
    raise ValueError(
        f"{unknown_name_message('optimizer', name.lower(), known)}, or package.module:Class"
    )
