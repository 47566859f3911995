"""What SAM and Offload share: they wrap another optimizer, which has the state and steps.

:class:`OptimizerWrapper` is for both; :class:`TransparentWrapper` for wrappers whose groups are the
base optimizer's own.
"""

import inspect
from typing import Any, NoReturn

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

    def preconditioner(self) -> dict[Tensor, Tensor]:
        """Return the base optimizer's diagonal preconditioner, if it is one of this library.

        Raises
        ------
        AttributeError
            The base optimizer has no such method.
        """
        return self._asked(
            "preconditioner",
            "; steppe.landscape.preconditioned takes torch's optimizers too, in wrappers as well",
        )

    def release_gradients(self, model: Any) -> NoReturn:
        """Refuse to step parameters in the backward pass.

        Raises
        ------
        TypeError
            Always: a wrapper needs all gradients at its step.
        """
        raise TypeError(
            f"{type(self).__name__} needs all gradients when it steps: release_gradients is for "
            "an optimizer without it"
        )

    def master_params(self) -> dict[Tensor, Tensor]:
        """Return the parameters as the base optimizer has them, if it is one of this library.

        Raises
        ------
        AttributeError
            The base optimizer has no such method.
        """
        return self._asked("master_params", ": its weights are the parameters themselves")

    def _asked(self, name: str, advice: str) -> dict[Tensor, Tensor]:
        """Return what a method of the base optimizer finds; ``advice`` is for who has none."""
        base = self.base_optimizer
        if not hasattr(base, name):
            raise AttributeError(
                f"{type(base).__name__} has no {name}(), as optimizers of this library do{advice}"
            )
        return dict(getattr(base, name)())


class TransparentWrapper(OptimizerWrapper):
    """A wrapper whose parameter groups, state and defaults are the base optimizer's own.

    They can be assigned, as frameworks do; groups and defaults that lack this wrapper's options are
    given them.

    Attributes
    ----------
    own_options
        This wrapper's options, which the base optimizer does not know.
    """

    own_options: dict[str, Any]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's groups."""
        return self.base_optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        for group in groups:
            self._complete(group)
        self.base_optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """The base optimizer's state."""
        return self.base_optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base_optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The base optimizer's defaults, and this wrapper's options."""
        return self.base_optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self._complete(defaults)
        self.base_optimizer.defaults = defaults

    def _complete(self, options: dict[str, Any]) -> None:
        for name, value in self.own_options.items():
            options.setdefault(name, value)

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's checkpoint, this wrapper's options included."""
        return self.base_optimizer.state_dict()


def share_hooks(wrapper: Optimizer, base: Optimizer) -> None:
    """Give a wrapper the base's checkpoint hooks: the base makes and loads the checkpoints."""
    for name in _HOOKS:
        setattr(wrapper, name, getattr(base, name))


# What torch puts around the step of every class: all of these functions share one code.
_HOOKED: Any = Optimizer.profile_hook_step(Optimizer.step).__code__


def step_within(base: Optimizer) -> None:
    """Step a wrapper's base optimizer, without what its wrapper's step has done already.

    torch calls the hooks of all optimizers, and marks a profile, around the step of each class:
    step counters would count a wrapper's steps twice. The base's own hooks are called.
    """
    step: Any = vars(base).get("step", type(base).step)
    # A scheduler of the base puts a function of its own around the step, which notes the call.
    is_watched = hasattr(step, "_wrapped_by_lr_sched")
    hooked = step.__wrapped__ if is_watched else step
    if getattr(hooked, "__code__", None) is not _HOOKED:
        base.step()
        return
    watched: Any = base
    if is_watched:
        watched._opt_called = True
    arguments, keywords = (base,), dict[str, Any]()
    for before in tuple(watched._optimizer_step_pre_hooks.values()):
        arguments, keywords = before(base, arguments, keywords) or (arguments, keywords)
    hooked.__wrapped__(*arguments, **keywords)
    for after in tuple(watched._optimizer_step_post_hooks.values()):
        after(base, arguments, keywords)


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
