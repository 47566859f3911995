"""steppe's optimizers by name in timm: ``create_optimizer_v2(model, opt="dualadam")``."""

import inspect

from timm.optim._optim_factory import OptimInfo, default_registry
from torch.optim import Optimizer

from steppe._shared.optimizer_classes import available


def register() -> list[str]:
    """Put steppe's optimizers into timm's registry, by the names of their classes in small letters.

    timm's prefix ``lookahead_``, its layer decay and its schedulers then work with them, and so
    does ``--opt`` of its training script, where this is called before. As with timm's own, an
    optimizer that has a momentum gets 0.9 unless it is told another. SAM has no name of its own,
    because timm's loop takes one pass a step: ``steppe.SAM(create_optimizer_v2(model, …))`` wraps
    any optimizer that timm makes, for a loop of your own.

    Calling it again changes nothing.

    Returns
    -------
    list of str
        The names, sorted.

    Raises
    ------
    ValueError
        timm has another optimizer of one of the names. Nothing has been registered then.

    Examples
    --------
    >>> import torch, steppe.integrations.timm
    >>> from timm.optim import create_optimizer_v2
    >>> steppe.integrations.timm.register()[:3]
    ['adamcg', 'adamcm', 'dualadam']
    >>> model = torch.nn.Linear(3, 2)
    >>> type(create_optimizer_v2(model, opt="dualadam", lr=1e-3, weight_decay=0.05)).__name__
    'DualAdam'
    """
    infos = {k: x for k, x in available().items() if x.__module__.startswith("steppe.")}
    known = set(default_registry.list_optimizers())
    for name in infos.keys() & known:
        found = default_registry.get_optimizer_info(name).opt_class
        if found is not infos[name]:
            raise ValueError(f"timm has another optimizer called {name!r} already: {found}")
    for name in sorted(infos.keys() - known):
        default_registry.register(_info(name, infos[name]))
    return sorted(infos)


def _info(name: str, optimizer: type[Optimizer]) -> OptimInfo:
    options = inspect.signature(optimizer).parameters
    summary = (inspect.getdoc(optimizer) or "").splitlines()[0]
    return OptimInfo(
        name=name,
        opt_class=optimizer,
        description=f"steppe: {summary}",
        has_eps="eps" in options,
        has_momentum="momentum" in options,
        has_betas="betas" in options,
    )
