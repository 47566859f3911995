"""SAM's passes under Lightning's automatic optimization, and diagnostics in its logs."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from functools import partial, wraps
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from steppe.integrations._kept_batch import KeptBatch
from steppe.integrations._sam import find_sam, run_second_pass
from steppe.landscape import Monitor
from steppe.optim import SAM


class LightningSAM(Callback):
    """Gives Lightning's automatic optimization the passes of :class:`steppe.SAM`.

    Of two passes the second runs after the backward pass of the last batch that a step accumulates,
    over all of them; of one, each batch runs at p + e. Gradients are unscaled and clipped after
    that, as ever. What ``training_step`` logs is that of the first pass. A metric of
    torchmetrics that it updates sees both.

    Raises
    ------
    TypeError
        When fitting begins: the optimizer is no SAM.
    ValueError
        When fitting begins: the optimization is manual, in which ``perturbed()`` goes around the
        second pass; or the strategy steps by itself, as DeepSpeed's does.

    Examples
    --------
    ``Trainer(callbacks=[LightningSAM()], accumulate_grad_batches=4, gradient_clip_val=1.0)``, where
    ``configure_optimizers`` returns ``steppe.SAM(self.parameters(), torch.optim.AdamW, lr=1e-3)``.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[KeptBatch, int]] = []
        self._is_second = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that SAM can train, and perturb the passes of methods that take one."""
        if not pl_module.automatic_optimization:
            raise ValueError(
                "LightningSAM does not fit automatic_optimization=False: run the second pass in "
                "training_step, with optimizer.perturbed() around it"
            )
        if trainer.strategy.handles_gradient_accumulation:
            raise ValueError(
                f"LightningSAM does not fit {type(trainer.strategy).__name__}, whose engine owns "
                "the parameters and steps them itself: use DDP or FSDP2"
            )
        sam = find_sam(trainer.optimizers[0])
        pl_module.training_step = wraps(pl_module.training_step)(  # type: ignore[method-assign]
            partial(self._training_step, trainer, pl_module, sam, pl_module.training_step)
        )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module its own ``training_step`` again."""
        vars(pl_module).pop("training_step", None)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Put the parameters back, and the module's ``training_step``."""
        self.on_fit_end(trainer, pl_module)
        self._batches.clear()
        for optimizer in trainer.optimizers:
            find_sam(optimizer).restore()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch until the step that it belongs to."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._batches.clear()
        self._batches.append((KeptBatch(batch), batch_idx))

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last batch of a step run its second pass; of one pass end the perturbation."""
        sam = find_sam(trainer.optimizers[0])
        if not sam.has_two_passes:
            sam.restore()
            return
        if not self._is_second and _ends_step(trainer, self._batches[-1][1]):
            self._run_second_passes(trainer, pl_module, sam)

    def _training_step(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        sam: SAM,
        training_step: Callable[..., Any],
        *arguments: Any,
        **named: Any,
    ) -> Any:
        """Run a training step: of one pass at p + e, until its backward pass has ended.

        Of two passes one that skips the last batch of a step ends the first passes, as Lightning
        calls no ``on_after_backward`` if it returns None.
        """
        if not sam.has_two_passes:
            sam.perturb()
            return training_step(*arguments, **named)
        output = training_step(*arguments, **named)
        if self._is_second or output is not None:
            return output
        _, skipped = self._batches.pop()
        if self._batches and _ends_step(trainer, skipped):
            self._run_second_passes(trainer, pl_module, sam)
        return output

    def _run_second_passes(self, trainer: Trainer, pl_module: LightningModule, sam: SAM) -> None:
        if not sam.is_active:
            return
        runs = [partial(_run, trainer, pl_module, sam, *each) for each in self._batches]
        self._is_second = True
        own_log = vars(pl_module).get("log")
        pl_module.log = _log_nothing  # type: ignore[method-assign]
        try:
            # A single process has nothing to exchange.
            run_second_pass(
                sam, runs, getattr(trainer.strategy, "block_backward_sync", nullcontext)
            )
        finally:
            self._is_second = False
            del pl_module.log
            if own_log is not None:
                pl_module.log = own_log  # type: ignore[method-assign]


def _ends_step(trainer: Trainer, batch_idx: int) -> bool:
    return trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def _run(
    trainer: Trainer, module: LightningModule, sam: SAM, kept: KeptBatch, batch_idx: int
) -> None:
    """Run forward and backward of a batch as Lightning's loop does."""
    batch = kept.again()
    from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

    takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    output = trainer.strategy.training_step(*((batch, batch_idx) if takes_index else (batch,)))
    loss: Any = output["loss"] if isinstance(output, Mapping) else output
    if loss is not None:
        trainer.strategy.backward(loss / trainer.accumulate_grad_batches, sam)


def _log_nothing(*arguments: Any, **named: Any) -> None:
    """Stand in for ``log`` in a second pass."""


class LightningDiagnostics(Callback):
    """Logs the optimizer's ``diagnostics()``, and curvature.

    Names are ``optimizer/alpha`` and so on, and ``monitor/lambda_max`` and so on of what a
    :class:`steppe.landscape.Monitor` measures.

    Parameters
    ----------
    every
        Steps between two logs of diagnostics; ≥ 1. A log costs a pass over the optimizer's state.
        Default: None, the Trainer's ``log_every_n_steps``.
    monitor
        Returns a Monitor, given the module and its optimizer, when fitting begins. Lightning's
        checkpoints hold its state. Default: None, which measures no curvature.

    Raises
    ------
    ValueError
        ``every`` is out of its range.
    """

    def __init__(
        self,
        every: int | None = None,
        monitor: Callable[[LightningModule, Optimizer], Monitor] | None = None,
    ) -> None:
        if every is not None and (type(every) is not int or every < 1):
            raise ValueError(f"every={every!r} is not valid: expected an integer ≥ 1 or None")
        self._every, self._make = every, monitor
        self._module: LightningModule | None = None
        self._monitor: Monitor | None = None
        self._loaded: dict[str, Any] | None = None
        self._steps = self._logged = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the Monitor, or go on with that of the checkpoint."""
        self._steps = self._logged = trainer.global_step
        if self._make is None:
            return
        earlier = self._monitor if self._module is pl_module else None
        self._module, self._monitor = pl_module, self._make(pl_module, trainer.optimizers[0])
        if self._loaded is not None:
            self._monitor.load_state_dict(self._loaded)
            self._loaded = None
        elif earlier is not None:
            # The same module is fitted again, with a new optimizer, perhaps of other parameters.
            with suppress(ValueError):
                self._monitor.load_state_dict(earlier.state_dict())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *arguments: Any
    ) -> None:
        """Measure and log after a step, where it is time."""
        if trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        if self._monitor is not None:
            known = len(self._monitor.history)
            self._monitor.step()
            for row in self._monitor.history[known:]:
                _log(trainer, pl_module, "monitor", row.values)
        diagnose = getattr(trainer.optimizers[0], "diagnostics", None)
        every = self._every or trainer.log_every_n_steps  # type: ignore[attr-defined]
        if diagnose is not None and every and self._steps >= self._logged + every:
            self._logged = self._steps
            _log(trainer, pl_module, "optimizer", diagnose())

    def state_dict(self) -> dict[str, Any]:
        """Return the Monitor's state, for Lightning's checkpoints."""
        return {} if self._monitor is None else {"monitor": self._monitor.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the Monitor's state until training begins."""
        self._loaded = state_dict.get("monitor")


def _log(
    trainer: Trainer, module: LightningModule, group: str, values: Mapping[str, float]
) -> None:
    """Log as ``module.log`` does, and to the loggers at any step.

    Lightning passes on to them what is logged at every ``log_every_n_steps``, and drops the rest.
    """
    named = {f"{group}/{name}": value for name, value in values.items()}
    module.log_dict(named, logger=False)
    for logger in trainer.loggers:
        # The number that Lightning gives to what is logged in this batch.
        logger.log_metrics(named, step=trainer.global_step - 1)
