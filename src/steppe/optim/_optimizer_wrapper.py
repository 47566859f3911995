"""What optimizers around another optimizer share."""

import inspect
from typing import Any

from torch.optim import Optimizer

_HOOKS = tuple(
    f"_optimizer_{when}_hooks"
    for when in (
        "state_dict_pre",
        "state_dict_post",
        "load_state_dict_pre",
        "load_state_dict_post",
    )
)


class OptimizerWrapper(Optimizer):
    """An optimizer around another one, which has the state and takes the steps."""

    base_optimizer: Optimizer

    @property
    def engine(self) -> str:
        """Name of the engine that runs the base optimizer's step."""
        return getattr(self.base_optimizer, "engine", "torch.optim")

    def diagnostics(self) -> dict[str, float]:
        """Return the base optimizer's diagnostics; empty if it has none."""
        diagnose: Any = getattr(self.base_optimizer, "diagnostics", dict)
        return dict(diagnose())


def share_hooks(wrapper: Optimizer, base: Optimizer) -> None:
    """Hand on the hooks of checkpoints to the base, which makes and loads them."""
    for name in _HOOKS:
        setattr(wrapper, name, getattr(base, name))


def check_step(base: Optimizer, wrapper: str) -> None:
    """Refuse a base whose step asks for a closure, which its wrapper runs itself."""
    try:
        # The class's: schedulers put another on the instance, bound but with self in its signature.
        parameters = list(inspect.signature(type(base).step).parameters.values())[1:]
    except ValueError:  # compiled code may have no signature
        return
    starred = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    needed = [x.name for x in parameters if x.default is x.empty and x.kind not in starred]
    if needed:
        raise TypeError(
            f"base_optimizer={type(base).__name__} needs {', '.join(needed)} in every step, and "
            f"{wrapper} calls step() with nothing: expected an optimizer whose step needs no "
            "closure"
        )
