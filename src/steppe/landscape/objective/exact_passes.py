"""Make every pass compute one function, with right first and second derivatives.

Fast kernels, low precision and compilers are chosen by what surrounds a pass: whether gradients are
recorded, autocast, an optimizer's step. Measuring needs the plain operations.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.utils.parametrize
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from steppe._shared.interrupts import uninterrupted

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside of DataParallel, DistributedDataParallel and ``torch.compile``.

    Their hooks and graphs are made for training's first derivatives.

    Examples
    --------
    >>> inner = nn.Linear(1, 1)
    >>> unwrapped(nn.DataParallel(inner)) is inner
    True
    """
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


@contextmanager
def exact_passes(model: nn.Module, device: torch.device) -> Iterator[list[str]]:
    """Run a model's passes by operations that can be differentiated twice, in its own precision.

    Inside the block:

    * Attention runs by the math kernel: torch's fused ones have no second derivative ("derivative
      for aten::_scaled_dot_product_flash_attention_for_cpu_backward is not implemented").
      Transformer layers leave out their fast path, which without gradients computes another
      function of padded sequences.
    * An outer ``torch.autocast`` is off: it caches the weights that it has rounded, and would go on
      with these when parameters change. So is an outer ``torch.inference_mode``.
    * What ``torch.compile`` has compiled runs as it was written: compiled graphs have no second
      derivative.
    * ``torch.utils.checkpoint`` recomputes without its reentrant backward, which leaves out
      parameters where gradients are taken by ``torch.autograd.grad``, and keeps dual numbers.
    * ``weight_norm`` is computed from its formula: the second derivative of torch's fused operation
      is wrong (it is not symmetric; found in torch 2.13 for the first and the last dimension).
    * Embeddings have dense gradients, which are not divided by how often a row is used
      (``scale_grad_by_freq``), and padding has no tangent, as it has no gradient. cuDNN's recurrent
      kernels, which have no second derivative, are off.
    * An outer ``parametrize.cached()`` is off, which would go on with the weights that it has
      computed when parameters change.
    * Backward hooks of parameters and modules are off: those that clip, scale or mask gradients
      would make them another function's.

    Yields
    ------
    list of str
        Names of what a graph needs of this block to be differentiated: "checkpoint" where a part of
        the model will be recomputed.
    """
    needed: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for kind in {"cpu", device.type}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        # An autocast inside of forward clears its cache only when there is none around it.
        stack.enter_context(
            _switched_off(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled)
        )
        stack.enter_context(_without_cached_weights())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        mha, cudnn = torch.backends.mha, torch.backends.cudnn
        stack.enter_context(_switched_off(mha.get_fastpath_enabled, mha.set_fastpath_enabled))
        stack.enter_context(_differentiable_checkpoints(needed))
        stack.enter_context(_plain_embeddings(model))
        stack.enter_context(_without_backward_hooks(model))
        # Where nothing has been compiled, Dynamo is not loaded, which takes seconds.
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            enable = partial(setattr, cudnn, "enabled")
            stack.enter_context(_switched_off(lambda: cudnn.enabled, enable))
        if _has_weight_norm(model):
            stack.enter_context(_weight_norm_by_formula())
        yield needed


@contextmanager
def renormed_embeddings(model: nn.Module) -> Iterator[bool]:
    """Keep embeddings from renormalising their weight (``max_norm``) in the forward pass.

    Instead it is done once, on entering: derivatives are those at the weights that a forward pass
    leaves behind, as in training. On leaving the weights are put back.

    Yields
    ------
    bool
        Whether there is such an embedding.
    """
    modules = [module for module in model.modules() if isinstance(module, _EMBEDDINGS)]
    found = [
        (module, module.max_norm, module.weight.detach().clone())
        for module in modules
        if module.max_norm is not None
    ]
    try:
        for module, most, _ in found:
            rows = torch.arange(len(module.weight), device=module.weight.device)
            with torch.no_grad():
                torch.embedding_renorm_(module.weight, rows, float(most), module.norm_type)
            module.max_norm = None
        yield bool(found)
    finally:
        for module, most, weight in found:
            module.max_norm = most
            with torch.no_grad():
                module.weight.copy_(weight)


def has_renormed_embeddings(model: nn.Module) -> bool:
    """Whether an embedding renormalises its weight in the forward pass."""
    return any(
        isinstance(module, _EMBEDDINGS) and module.max_norm is not None
        for module in model.modules()
    )


@contextmanager
def without_gradients(model: nn.Module) -> Iterator[None]:
    """Let parameters require no gradient, so that no graph is kept, while gradients are enabled.

    ``torch.no_grad`` would change the function of a model that differentiates by its inputs, or
    that asks whether gradients are enabled.
    """
    if _keeps_computed_tensors(model):
        # Such as weights that are views of one parameter, made once. After a write torch makes a
        # view's gradient anew by what its parameter requires then: it would be cut off for good.
        with torch.enable_grad():
            yield
        return
    params = [param for param in model.parameters() if param.requires_grad]
    with uninterrupted() as interruptible:
        try:
            for param in params:
                param.requires_grad_(False)
            with torch.enable_grad(), interruptible():
                yield
        finally:
            for param in params:
                param.requires_grad_(True)


def _keeps_computed_tensors(model: nn.Module) -> bool:
    """Whether modules have attributes that were computed from parameters."""
    attributes = (value for module in model.modules() for value in vars(module).values())
    held = (
        part
        for value in attributes
        for part in (value if type(value) in (list, tuple) else (value,))
    )
    # By types: of a proxy everything is asked in its object, which may be gone.
    return any(issubclass(type(each), Tensor) and each.grad_fn is not None for each in held)


@contextmanager
def _weight_norm_by_formula() -> Iterator[None]:
    """Compute w = g·v/‖v‖ by operations whose second derivatives are right.

    A function mode would do it for every other operation that a loader interrupts, too.
    """
    # Each has the function by a name of its own.
    users: list[Any] = [torch, sys.modules[WeightNorm.__module__]]
    fused = torch._weight_norm
    for user in users:
        user._weight_norm = _weight_norm
    try:
        yield
    finally:
        for user in users:
            user._weight_norm = fused


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    # −1 stands for no dimension: one norm of all.
    others = [other for other in range(v.ndim) if other != dim] if dim != -1 else None
    weight: Tensor = v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=dim != -1))
    return weight


def _has_weight_norm(model: nn.Module) -> bool:
    return any(
        isinstance(module, _WeightNorm)
        or any(isinstance(hook, WeightNorm) for hook in module._forward_pre_hooks.values())
        for module in model.modules()
    )


@contextmanager
def _switched_off(is_on: Callable[[], bool], switch: Callable[[bool], object]) -> Iterator[None]:
    before = is_on()
    switch(False)
    try:
        yield
    finally:
        switch(before)


@contextmanager
def _without_cached_weights() -> Iterator[None]:
    module: Any = torch.nn.utils.parametrize
    before = module._cache_enabled, module._cache
    module._cache_enabled, module._cache = 0, {}
    try:
        yield
    finally:
        module._cache_enabled, module._cache = before


@contextmanager
def _differentiable_checkpoints(needed: list[str]) -> Iterator[None]:
    module = torch.utils.checkpoint
    function, plain = module.CheckpointFunction, module._checkpoint_without_reentrant_generator

    def recompute(run: Any, preserve_rng_state: bool, *args: Any) -> Any:
        return module.checkpoint(
            run, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state
        )

    def around(*args: Any, **kwargs: Any) -> Iterator[None]:
        needed.append("checkpoint")
        # Dual numbers are not recomputed ("a different number of tensors was saved").
        if forward_ad._current_level >= 0:
            yield
        else:
            yield from plain(*args, **kwargs)

    # checkpoint() calls the class's inherited apply; an attribute of the class itself goes before.
    before = vars(function).get("apply")
    function.apply = staticmethod(recompute)  # type: ignore[method-assign]
    module._checkpoint_without_reentrant_generator = around
    try:
        yield
    finally:
        module._checkpoint_without_reentrant_generator = plain
        if before is None:
            del function.apply
        else:
            function.apply = before  # type: ignore[method-assign]


@contextmanager
def _plain_embeddings(model: nn.Module) -> Iterator[None]:
    names = ("sparse", "scale_grad_by_freq")
    embeddings = [module for module in model.modules() if isinstance(module, _EMBEDDINGS)]
    switched = [(each, name) for each in embeddings for name in names if getattr(each, name)]
    padded = [
        each.register_forward_hook(_without_tangent_of_padding, with_kwargs=True)
        for each in embeddings
        if isinstance(each, nn.Embedding) and each.padding_idx is not None
    ]
    for module, name in switched:
        setattr(module, name, False)
    try:
        yield
    finally:
        for module, name in switched:
            setattr(module, name, True)
        for hook in padded:
            hook.remove()


def _without_tangent_of_padding(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> Tensor:
    if forward_ad._current_level < 0:
        return output
    primal, _ = forward_ad.unpack_dual(output)  # type: ignore[no-untyped-call]
    ids: Tensor = args[0] if args else kwargs["input"]
    return torch.where((ids == module.padding_idx).unsqueeze(-1), primal, output)


@contextmanager
def _without_backward_hooks(model: nn.Module) -> Iterator[None]:
    holders: list[Any] = [*model.parameters(), *model.modules()]
    found = [getattr(each, "_backward_hooks", None) for each in holders]
    found += [module._backward_pre_hooks for module in model.modules()]
    # Autograd looks into these dictionaries, so they are emptied in their place.
    hooks = [(each, dict(each)) for each in found if each]
    for each, _ in hooks:
        each.clear()
    try:
        yield
    finally:
        for each, own in hooks:
            each.update(own)
