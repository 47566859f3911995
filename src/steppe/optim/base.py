"""What all optimizers share: options, state, the step, checkpoints."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import Optimizer, ParamsT

from steppe import engines
from steppe.engines import Kernel, Row
from steppe.engines.plan import Batch, Group
from steppe.optim import checkpoint
from steppe.optim.options import check
from steppe.optim.state import complete

Closure = Callable[[], Any]


def arguments(names: dict[str, Any]) -> dict[str, Any]:
    """Keep of a constructor's ``locals()`` the options, which become the group's defaults."""
    return {k: v for k, v in names.items() if k not in ("self", "params", "__class__")}


class RuleOptimizer(Optimizer):
    """An optimizer whose arithmetic is a rule, run by an engine.

    A subclass names its options in its constructor and says in ``_kernel`` which rule a group's
    options ask for. All configuration stands in ``param_groups`` and all else in ``state``, so
    that copies, pickles and checkpoints are complete.

    NaN and infinite gradients are not repaired: they reach parameters and state as in
    ``torch.optim``. Skip such steps with a ``GradScaler``, or clip.
    """

    def __init__(self, params: ParamsT, options: dict[str, Any]) -> None:
        check(options)
        super().__init__(params, options)

    def _kernel(self, group: Group) -> Kernel:
        raise NotImplementedError

    @property
    def engine(self) -> str:
        """Name of the engine that runs the step; several, if parameters differ."""
        batches = engines.plan(
            (self._kernel(group), engines.row(param, param, {}, group))
            for group in self.param_groups
            for param in group["params"]
        )
        return ", ".join(sorted({engines.choose(batch).name for batch in batches}))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with options that differ from the defaults where the group names them.

        Raises
        ------
        ValueError
            An option is out of its range, or a parameter is in a group already.
        """
        check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    # As torch does for its own step: dynamo cannot follow the planning.
    @_disable_dynamo
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step with the gradients at hand.

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
            A gradient is sparse, or ``fused=True`` cannot be had. Nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            batches = self._batches()
            engines.step(batches)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint and go on exactly where it was saved.

        Every tensor keeps the number format it was saved in: torch.optim would round the state of
        half-precision parameters, step counts and keys included, to the parameter's own format.

        Raises
        ------
        ValueError
            The checkpoint does not fit; the message names the difference. Nothing has changed.
        """
        accepted: dict[str, Any] = {}

        def inspect(_: Optimizer, incoming: dict[str, Any]) -> None:
            checkpoint.check_fits(self, self._kernel, incoming)
            accepted.update(incoming)

        def restore(_: Optimizer) -> None:
            checkpoint.restore(self, accepted)

        # Hooks of the user's may change what is loaded: look after them, and restore before them.
        before = self.register_load_state_dict_pre_hook(inspect)
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _batches(self) -> list[Batch]:
        """Plan this step: check all gradients, then make missing state, then count the step."""
        active = list(self._with_gradients())
        rows = []
        for kernel, param, grad, group in active:
            complete(self.state[param], param, kernel, group)
            rows.append((kernel, engines.row(param, grad, self.state[param], group)))
        if rows:
            torch._foreach_add_([row.state["step"] for _, row in rows], 1.0)
        return engines.plan(rows)

    def _with_gradients(self) -> Iterator[tuple[Kernel, Tensor, Tensor, Group]]:
        for number, group in enumerate(self.param_groups):
            kernel = self._kernel(group)
            for index, param in enumerate(group["params"]):
                grad = param.grad
                if grad is None:
                    continue
                if grad.layout != torch.strided:
                    raise RuntimeError(
                        f"{type(self).__name__} does not take {grad.layout} gradients: "
                        f"parameter {index} of group {number}, shape {tuple(param.shape)}; "
                        "use dense ones, e.g. Embedding(sparse=False)"
                    )
                yield kernel, param, grad, group

    def _rows_with_state(self) -> Iterator[Row]:
        """Yield the rows of all parameters that have state, for diagnostics."""
        for group in self.param_groups:
            for param in group["params"]:
                if self.state.get(param):
                    yield engines.row(param, param, self.state[param], group)
