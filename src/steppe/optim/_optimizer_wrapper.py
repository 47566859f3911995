"""What SAM and Offload share: they wrap another optimizer, which has the state and steps.

:class:`OptimizerWrapper` is for both; :class:`TransparentWrapper` for wrappers whose groups are the
base optimizer's own.
"""

import inspect
from typing import Any

from torch import Tensor
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


class TransparentWrapper(OptimizerWrapper):
    """A wrapper whose parameter groups, state and defaults are the base optimizer's own."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base optimizer's groups."""
        return self.base_optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base optimizer's state."""
        return self.base_optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The base optimizer's defaults, and this wrapper's options."""
        return self.base_optimizer.defaults

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's checkpoint, this wrapper's options included."""
        return self.base_optimizer.state_dict()

    def preconditioner(self) -> dict[Tensor, Tensor]:
        """Return the base optimizer's diagonal preconditioner, if it is one of this library.

        Raises
        ------
        AttributeError
            The base optimizer has no such method.
        """
        base: Any = self.base_optimizer
        return dict(base.preconditioner())


def share_hooks(wrapper: Optimizer, base: Optimizer) -> None:
    """Give a wrapper the base's checkpoint hooks: the base makes and loads the checkpoints."""
    for name in _HOOKS:
        setattr(wrapper, name, getattr(base, name))


def check_step(base: Optimizer, wrapper: str) -> None:
    """Refuse a base optimizer whose step needs a closure, which its wrapper runs itself.

    Raises
    ------
    TypeError
        ``base.step`` cannot be called without arguments.
    """
    try:
        # The class's: schedulers put another on the instance, bound but with self in its signature
        # (torch.optim.lr_scheduler patches ``optimizer.step`` to count the calls).
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
