"""When an optimizer has become Adam: a rate of steps, or a share of the run.

DualAdam, DualAdamCM and MIAdam derive from :class:`SwitchingOptimizer`.
"""

from typing import Any

from torch.optim.optimizer import ParamsT

from steppe._shared.hyperparameters import PUBLISHED_SWITCH
from steppe.optim._base import RuleOptimizer
from steppe.optim._options import check_options, to_plain

#: ξ where nothing else is known: that of the constructor that the authors of DualAdam released.
DEFAULT_RATE = 1 / 100

_OF_THE_RUN = ("total_steps", "switch")


class SwitchingOptimizer(RuleOptimizer):
    """An optimizer that becomes Adam 1/``switch_rate`` steps after its first.

    The constructor turns ``total_steps`` and ``switch`` into ``switch_rate``, which alone is in the
    groups: checkpoints and engines know nothing else.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Note the rate that a checkpoint has taken which lacks it."""
        super().__init_subclass__(**options)
        cls._class_defaults = {**cls._class_defaults, "switch_rate": DEFAULT_RATE}

    def __init__(self, params: ParamsT, options: dict[str, Any]) -> None:
        plain = {name: to_plain(value, name) for name, value in options.items()}
        given = {name: plain.pop(name) for name in _OF_THE_RUN}
        super().__init__(params, plain | {"switch_rate": _rate(plain["switch_rate"], **given)})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; the group may name its own ``switch_rate``.

        Raises
        ------
        ValueError
            As in all optimizers, and for ``total_steps`` and ``switch``, which are the run's.
        """
        for name in _OF_THE_RUN:
            if name in param_group:
                raise ValueError(
                    f"{name}={param_group[name]!r} is not valid in a group: expected it in the "
                    "constructor, for all groups, or a switch_rate of the group"
                )
        super().add_param_group(param_group)


def _rate(rate: float | None, *, total_steps: int | None, switch: float) -> float:
    check_options({"total_steps": total_steps, "switch": switch})
    if total_steps is None:
        if switch != PUBLISHED_SWITCH:
            raise ValueError(
                f"switch={switch!r} is not valid without total_steps: expected the number of steps "
                "of the run, of which switch is a share, or switch_rate alone"
            )
        return DEFAULT_RATE if rate is None else rate
    if rate is not None:
        raise ValueError(
            f"total_steps={total_steps!r} is not valid beside switch_rate={rate!r}: expected one "
            "of the two, as both say when to switch"
        )
    return min(1.0, 1 / (switch * total_steps))
