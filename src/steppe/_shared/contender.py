"""An optimizer of a user's own for comparisons, with a search space of its own."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

#: Names of hyperparameters that mean something to a study.
_STUDY_OWN = frozenset({"model", "steps"})


@dataclass(frozen=True, eq=False)
class Contender:
    """An optimizer, how it is made, and what is searched for it.

    Attributes
    ----------
    name : str
        What tables call it. One that a command names in a file is called as it is written there,
        ``mytask.py:mine``.
    make : callable
        ``make(model, **settings)`` returns an optimizer of the model's parameters, in whatever
        groups. If it has an argument ``steps``, it gets the number of steps of the run.
    space : mapping, default empty
        What is searched: names of settings to :class:`~steppe.compare.LogUniform`,
        :class:`~steppe.compare.Uniform` or :class:`~steppe.compare.Choice`.
    defaults : mapping, default empty
        Values of who tunes nothing. Default: those of ``make``'s signature.

    Raises
    ------
    TypeError
        ``make`` is no function, or does not take a setting.
    ValueError
        The name is empty or one of steppe's own, or a setting has no default.

    Examples
    --------
    >>> import torch
    >>> from steppe.compare import LogUniform
    >>> def slow_bias(model, lr=1e-3):
    ...     bias = [p for p in model.parameters() if p.ndim < 2]
    ...     rest = [p for p in model.parameters() if p.ndim >= 2]
    ...     return torch.optim.AdamW([{"params": rest}, {"params": bias, "lr": lr / 10}], lr=lr)
    >>> Contender("slow bias", slow_bias, {"lr": LogUniform(1e-4, 1e-1)}).default("lr")
    0.001
    """

    name: str
    make: Callable[..., Optimizer]
    space: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name = self.name
        if not isinstance(name, str) or not 0 < len(name) <= 60 or name != name.strip():
            raise ValueError(f"name={name!r} must be 1 to 60 characters, without blanks around")
        if not callable(self.make):
            raise TypeError(f"make must be a function, got {type(self.make).__name__}")
        for name, dimension in self.space.items():
            if not hasattr(dimension, "at"):
                raise TypeError(
                    f"space[{name!r}] must be LogUniform, Uniform or Choice, got {dimension!r}"
                )
        for name in (*self.space, *self.defaults):
            if not self.takes(name) or name in _STUDY_OWN:
                raise TypeError(f"make takes no setting {name!r}: give it an argument of that name")
        for name, value in self.defaults.items():
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise TypeError(f"defaults[{name!r}] must be a number, got {value!r}")
        for name in self.space:
            if self.default(name) is None:
                raise ValueError(
                    f"{name} has no default: give make one, as {name}=1e-3, or defaults={{...}}"
                )

    def takes(self, setting: str) -> bool:
        """Return whether ``make`` takes a setting."""
        parameters = inspect.signature(self.make).parameters
        takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        return takes_any or setting in parameters

    def default(self, setting: str) -> Any:
        """Return the value of a setting of who tunes nothing; None if there is none."""
        if setting in self.defaults:
            return self.defaults[setting]
        parameter = inspect.signature(self.make).parameters.get(setting)
        if parameter is None or parameter.default is parameter.empty:
            return None
        return parameter.default

    def build(self, model: nn.Module, settings: Mapping[str, float], steps: int) -> Optimizer:
        """Make the optimizer of a model.

        Raises
        ------
        TypeError
            ``make`` returns no optimizer.
        """
        given: dict[str, Any] = {name: x for name, x in settings.items() if self.takes(name)}
        if "steps" in inspect.signature(self.make).parameters:
            given["steps"] = steps
        made = self.make(model, **{**self.defaults, **given})
        if not isinstance(made, Optimizer):
            raise TypeError(
                f"{self.name}: make must return a torch.optim.Optimizer, got {type(made).__name__}"
            )
        return made
