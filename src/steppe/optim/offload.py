"""CPU offload: an optimizer whose state and arithmetic are on the host, the model on a device.

For models whose optimizer state does not fit onto the device. Experimental.
"""

import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from steppe._engines import check_memory
from steppe.optim._grad_mode import without_gradients
from steppe.optim._optimizer_wrapper import OptimizerWrapper, check_step, share_hooks, step_within

# These options need a step on the device.
_UNSUPPORTED = ("capturable", "differentiable")


class Offload(OptimizerWrapper):
    """Keep any optimizer's state on the host (the CPU), and take its steps there. Experimental.

    The accelerator holds only parameters and gradients. A step copies both to pinned memory, steps
    the copies (this library's optimizers with their CPU kernels), and copies the parameters back.
    One optimizer has all parameters, so a norm over all gradients, which critical momenta need, is
    the same as without offload. The steps are those of the optimizer on the CPU, bit for bit.

    ``param_groups`` and ``state`` are those of the model's parameters, and may be changed or
    assigned: clipping, ``GradScaler``, schedulers and ``zero_grad`` work as with any optimizer.
    ``state_dict`` is that of the optimizer without offload, so checkpoints pass between both.

    Parameters
    ----------
    params
        The model's parameters, named parameters, or groups of them whose options differ; none on
        the meta device. For FSDP2 models use ``offload_policy=CPUOffloadPolicy()`` of
        ``fully_shard`` in place of this class: it keeps the parameters themselves on the host.
    optimizer_class
        A class of this library, of torch, or with their interface, whose step needs no closure.
    **options
        The options of that class. ``capturable`` and ``differentiable`` must be False, their
        default.

    Raises
    ------
    TypeError
        A parameter is a ``DTensor`` or on the meta device; ``optimizer_class`` is not the class of
        an optimizer; or the optimizer's step needs a closure.
    ValueError
        An option is out of its range, or ``capturable`` or ``differentiable`` is True.

    Notes
    -----
    Each step copies three times the parameters' bytes: gradients and parameters to the host, then
    parameters to the device. Parameters are copied to the host in every step, because a loaded
    checkpoint or weight averaging may have changed them. The host holds the state, and copies of
    parameters and gradients.

    The copies begin after the backward pass, because gradients may be clipped after it. torchao's
    ``CPUOffloadOptimizer`` copies during the backward pass: it makes an optimizer for each
    parameter, and clipping has no effect on it.

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
        self._copies: dict[Tensor, nn.Parameter] = {}
        super().__init__(params, options)
        groups = [self._group_on_host(group) for group in self.param_groups]
        base: Any = optimizer_class(groups, **options) if callable(optimizer_class) else None
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
        names = ("defaults", "param_groups", "state", "base_optimizer", "_copies")
        return {name: vars(self)[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        share_hooks(self, self.base_optimizer)

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
            self.base_optimizer.add_param_group(self._group_on_host(self.param_groups[-1]))
        except BaseException:
            self.param_groups.pop()
            raise
        _share_options(self.base_optimizer.param_groups[-1:], self.param_groups[-1:])

    def preconditioner(self) -> dict[Tensor, Tensor]:
        """Return the optimizer's diagonal preconditioner, on the parameters' devices.

        Raises
        ------
        AttributeError
            The optimizer is not one of this library.
        """
        self._lend()
        return self._of_model(super().preconditioner())

    def master_params(self) -> dict[Tensor, Tensor]:
        """Return the parameters as the optimizer has them, on their own devices.

        Raises
        ------
        AttributeError
            The optimizer is not one of this library.
        """
        self._lend()
        for param, copy in self._pairs():
            copy.data.copy_(param)
        return self._of_model(super().master_params())

    def _of_model(self, found: dict[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Return what was found of the copies as the model's, on its devices."""
        return {
            param: found[copy].to(param.device) for param, copy in self._pairs() if copy in found
        }

    def diagnostics(self) -> dict[str, float]:
        """Return the optimizer's diagnostics; empty if it has none."""
        self._lend()
        return super().diagnostics()

    def state_dict(self) -> dict[str, Any]:
        """Return the checkpoint of the optimizer; its tensors are on the host."""
        self._lend()
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of the optimizer, saved with or without offload.

        Raises
        ------
        ValueError
            The checkpoint does not fit. Nothing has changed.
        """
        self._lend()
        self.base_optimizer.load_state_dict(state_dict)
        self._take_back()

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

        Raises
        ------
        RuntimeError
            A parameter has no memory, or elements that share it; or as the optimizer's step.
            Nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step()
        return loss

    @without_gradients
    def _step(self) -> None:
        self._lend()
        pairs = [(param, copy) for param, copy in self._pairs() if param.grad is not None]
        self._copy_to_host()
        try:
            step_within(self.base_optimizer)
            self._take_results(pairs)
        except BaseException:
            # What was stepped before Ctrl-C is counted, and belongs into the model.
            self._take_results(pairs)
            raise

    def _take_results(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Copy parameters to the device, and take over the state; done twice, it does the same."""
        for param, copy in pairs:
            # Later work on the device waits for this copy, and so does the next step's.
            param.copy_(copy, non_blocking=True)
        self._take_back()

    def _lend(self) -> None:
        """Give the optimizer the groups and the state, with its copies in the parameters' place."""
        base, groups = self.base_optimizer, self.param_groups
        wanted = [[id(self._copies.get(param)) for param in group["params"]] for group in groups]
        if wanted != [[id(copy) for copy in group["params"]] for group in base.param_groups]:
            # Somebody has assigned other groups.
            base.param_groups = [self._group_on_host(group) for group in groups]
            self._copies = {p: self._copies[p] for group in groups for p in group["params"]}
        _share_options(groups, base.param_groups)
        _share_state(self.state, base.state, self._copies)

    def _take_back(self) -> None:
        """Take over what the optimizer has made of the groups' options and of the state."""
        _share_options(self.base_optimizer.param_groups, self.param_groups)
        params = {copy: param for param, copy in self._copies.items()}
        _share_state(self.base_optimizer.state, self.state, params)

    def _group_on_host(self, group: dict[str, Any]) -> dict[str, Any]:
        """Return the group with copies of its parameters on the host."""
        for name in _UNSUPPORTED:
            if group.get(name):
                raise ValueError(
                    f"{name}=True is not valid in Offload, which steps on the CPU: expected False"
                )
        for param in group["params"]:
            if param not in self._copies:
                self._copies[param] = _param_on_host(param)
        return {**group, "params": [self._copies[param] for param in group["params"]]}

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each parameter and its copy on the host."""
        for group in self.param_groups:
            for param in group["params"]:
                yield param, self._copies[param]

    def _copy_to_host(self) -> None:
        """Copy parameters and gradients to the host, and wait for the copies."""
        devices = set()
        for param, copy in self._pairs():
            if (copy.dtype, copy.shape) != (param.dtype, param.shape):
                # The model was converted or pruned: allocate the copies anew.
                copy.grad, copy.data = None, _host_tensor(param)
            copy.grad = _gradient_on_host(param.grad, copy)
            if param.grad is not None:
                check_memory(param, "a parameter")
                copy.copy_(param, non_blocking=True)
                devices.add(param.device)
        for device in devices:
            if device.type != "cpu":
                torch.accelerator.synchronize(device)


def _param_on_host(param: Tensor) -> nn.Parameter:
    """Allocate the copy of a parameter on the host; every step fills it."""
    if hasattr(param, "full_tensor"):
        raise TypeError(
            "Offload does not take DTensors: fully_shard(…, offload_policy=CPUOffloadPolicy()) "
            "keeps sharded parameters on the host, where the optimizer itself takes them"
        )
    if param.is_meta:
        raise TypeError(
            "Offload does not take parameters on the meta device: make it when the model is on the "
            "device that trains it"
        )
    return nn.Parameter(_host_tensor(param), requires_grad=param.requires_grad)


def _gradient_on_host(grad: Tensor | None, copy: Tensor) -> Tensor | None:
    if grad is None:
        return None
    if grad.layout is not torch.strided:
        return grad.cpu()
    # A complex one of a real parameter, and the reverse, torch refuses below.
    dtype = copy.dtype if grad.is_complex() == copy.is_complex() else grad.dtype
    host = copy.grad
    if host is None or (host.layout, host.shape, host.dtype) != (grad.layout, grad.shape, dtype):
        host = _host_tensor(grad, dtype)
    return host.copy_(grad, non_blocking=True)


def _host_tensor(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Allocate a tensor on the host; pinned if the device's own copy engine will fill it."""
    pinned = tensor.device.type not in ("cpu", "mps")
    return torch.empty_like(
        tensor, dtype=dtype, device="cpu", pin_memory=pinned, requires_grad=False
    )


def _share_options(source: list[dict[str, Any]], target: list[dict[str, Any]]) -> None:
    """Copy the options of the source's groups to the target's, which keep their parameters."""
    for theirs, ours in zip(source, target, strict=True):
        ours.update({name: value for name, value in theirs.items() if name != "params"})


def _share_state(
    source: dict[Any, Any], target: dict[Any, Any], names: Mapping[Any, Tensor]
) -> None:
    """Let the target hold the source's states, each by the parameter's name there, and no others.

    The dictionaries of the states are shared, so what is changed in one is changed in both.
    """
    wanted = {names.get(key, key): state for key, state in source.items()}
    for key in [key for key in target if key not in wanted]:
        del target[key]
    target.update(wanted)
