"""An optimizer whose state and arithmetic are on the host, for a model on an accelerator."""

import reprlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from steppe.optim._optimizer_wrapper import OptimizerWrapper, check_step, share_hooks

# They ask for a step without the host, which this one is about.
_NOT_HERE = ("capturable", "differentiable")


class Offload(OptimizerWrapper):
    """Keep any optimizer's state on the host, and take its steps there.

    The accelerator holds parameters and gradients alone. A step copies both to pinned memory, lets
    the optimizer step the copies, those of this library with their CPU kernels, and copies the
    parameters back. It is one optimizer over all parameters, so that what it shares among them, as
    critical momenta do the norm of all gradients, is as without it: on one device the steps are
    those of the optimizer itself, bit for bit.

    ``param_groups`` hold the model's parameters: clipping, ``GradScaler``, schedulers and
    ``zero_grad`` act as on any optimizer. ``state_dict`` is the optimizer's own, with or without
    this wrapper.

    Parameters
    ----------
    params
        The model's parameters, named parameters, or groups of them whose options differ. Of FSDP2
        models none: ``fully_shard(…, offload_policy=CPUOffloadPolicy())`` keeps parameters on the
        host itself, where optimizers find them.
    optimizer_class
        A class of this library, of torch, or with their interface, whose step needs no closure.
    **options
        Its options.

    Raises
    ------
    TypeError
        A parameter is a ``DTensor`` or on the meta device; ``optimizer_class`` makes no optimizer;
        or the optimizer's step cannot do without a closure.
    ValueError
        An option is out of its range, or ``capturable`` or ``differentiable``.

    Notes
    -----
    Each step moves three times the parameters' bytes: gradients and parameters down, parameters up.
    Parameters go down too, as anything may have changed them since the last step: a loaded
    checkpoint, an average of weights. The host holds the state, parameters and gradients.
    Steps wait for the copies; they do not overlap with the backward pass, after which gradients may
    still be clipped. torchao's ``CPUOffloadOptimizer`` does overlap: it makes an optimizer for each
    parameter, and does not see what is clipped.

    Examples
    --------
    >>> import torch, steppe
    >>> model = torch.nn.Linear(3, 1)  # on any device
    >>> optimizer = steppe.optim.Offload(model.parameters(), steppe.AdamCM, lr=1e-3)
    >>> model(torch.ones(4, 3)).square().mean().backward()
    >>> optimizer.step()
    >>> optimizer.state[model.weight]["exp_avg"].device
    device(type='cpu')
    """

    def __init__(
        self, params: ParamsT, optimizer_class: Callable[..., Optimizer], **options: Any
    ) -> None:
        super().__init__(params, options)
        copies = [_copies(group) for group in self.param_groups]
        base: Any = optimizer_class(copies, **options) if callable(optimizer_class) else None
        if not isinstance(base, Optimizer):
            raise TypeError(
                f"optimizer_class={reprlib.repr(optimizer_class)} is not valid in Offload: "
                "expected the class of an optimizer, e.g. steppe.AdamCM"
            )
        check_step(base, "Offload")
        self.base_optimizer, self.defaults = base, base.defaults
        share_hooks(self, base)
        _share_options(base.param_groups, self.param_groups)

    def __getstate__(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in ("defaults", "param_groups", "base_optimizer")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        share_hooks(self, self.base_optimizer)

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The state of each parameter, on the host."""
        found: defaultdict[Tensor, Any] = defaultdict(dict)
        if "base_optimizer" in vars(self):
            state = self.base_optimizer.state
            found |= {param: state[copy] for param, copy in self._pairs() if copy in state}
        return found

    @state.setter
    def state(self, value: defaultdict[Tensor, Any]) -> None:
        """Take no other: torch's constructor begins with an empty one."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with options that differ from the defaults where the group names them.

        Raises
        ------
        TypeError, ValueError
            As the constructor does. Nothing has changed then.
        """
        super().add_param_group(param_group)
        if "base_optimizer" not in vars(self):
            return
        try:
            self.base_optimizer.add_param_group(_copies(self.param_groups[-1]))
        except BaseException:
            self.param_groups.pop()
            raise
        _share_options(self.base_optimizer.param_groups[-1:], self.param_groups[-1:])

    def preconditioner(self) -> dict[Tensor, Tensor]:
        """Return the optimizer's diagonal preconditioner, if it is one of this library.

        Raises
        ------
        AttributeError
            It has no such method.
        """
        base: Any = self.base_optimizer
        found = base.preconditioner()
        return {
            param: found[copy].to(param.device) for param, copy in self._pairs() if copy in found
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state, on the host."""
        _share_options(self.param_groups, self.base_optimizer.param_groups)
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of the optimizer, whether or not it was offloaded.

        Raises
        ------
        ValueError
            The checkpoint does not fit. Nothing has changed.
        """
        self.base_optimizer.load_state_dict(state_dict)
        _share_options(self.base_optimizer.param_groups, self.param_groups)

    # As torch does for its own step: dynamo cannot follow the copies.
    @_disable_dynamo
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step on the host with the gradients at hand.

        Parameters
        ----------
        closure
            Called first, with gradients enabled, to compute them; its loss is returned.

        Returns
        -------
        The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        _share_options(self.param_groups, self.base_optimizer.param_groups)
        pairs = [(param, copy) for param, copy in self._pairs() if param.grad is not None]
        with torch.no_grad():
            self._fetch()
            self.base_optimizer.step()
            for param, copy in pairs:
                # Later work on the device waits for it, and so does the next step's copy down.
                param.copy_(copy, non_blocking=True)
        _share_options(self.base_optimizer.param_groups, self.param_groups)
        return loss

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each parameter and its copy on the host."""
        for group, copies in zip(self.param_groups, self.base_optimizer.param_groups, strict=True):
            yield from zip(group["params"], copies["params"], strict=True)

    def _fetch(self) -> None:
        """Bring the host's copies up to date, and wait until they are."""
        devices = set()
        for param, copy in self._pairs():
            if copy.dtype != param.dtype:
                # The model has been converted. Its gradients have no room in the old format either.
                copy.grad, copy.data = None, _room(param)
            copy.grad = _fetched_gradient(param.grad, copy.grad)
            if param.grad is not None:
                copy.copy_(param, non_blocking=True)
                devices.add(param.device)
        for device in devices:
            if device.type != "cpu":
                torch.accelerator.synchronize(device)


def _copies(group: dict[str, Any]) -> dict[str, Any]:
    """Return the group with parameters on the host."""
    for name in _NOT_HERE:
        if group.get(name):
            raise ValueError(
                f"{name}=True is not valid in Offload, whose steps are the host's: expected False"
            )
    return {**group, "params": [_copy(param) for param in group["params"]]}


def _copy(param: Tensor) -> nn.Parameter:
    """Make room for a parameter on the host; every step fills it."""
    if hasattr(param, "full_tensor"):
        raise TypeError(
            "Offload does not take DTensors: fully_shard(…, offload_policy=CPUOffloadPolicy()) "
            "keeps sharded parameters on the host, where the optimizer itself takes them"
        )
    if param.is_meta:
        raise TypeError(
            "Offload does not take parameters on the meta device: make it when they are where they "
            "will be trained"
        )
    return nn.Parameter(_room(param), requires_grad=param.requires_grad)


def _fetched_gradient(grad: Tensor | None, room: Tensor | None) -> Tensor | None:
    if grad is None:
        return None
    if grad.layout is not torch.strided:
        return grad.cpu()
    if room is None or room.layout is not torch.strided:
        room = _room(grad)
    return room.copy_(grad, non_blocking=True)


def _room(tensor: Tensor) -> Tensor:
    """Allocate memory on the host, pinned if it is for an accelerator that copies by itself."""
    pinned = tensor.device.type not in ("cpu", "mps")
    return torch.empty_like(tensor, device="cpu", pin_memory=pinned, requires_grad=False)


def _share_options(source: list[dict[str, Any]], target: list[dict[str, Any]]) -> None:
    """Give the groups the options of others, whose parameters are their own."""
    for theirs, ours in zip(source, target, strict=True):
        ours.update({name: value for name, value in theirs.items() if name != "params"})
