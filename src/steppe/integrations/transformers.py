"""SAM's passes in Hugging Face's ``Trainer``, and optimizers by name for it."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from steppe.integrations._names import named_optimizer
from steppe.integrations._sam import find_sam, run_second_pass
from steppe.integrations.accelerate import ENGINES, refuse_engines
from steppe.landscape import Monitor

if TYPE_CHECKING:
    from transformers import TrainingArguments


class SAMMixin:
    """Gives a ``Trainer`` the passes of :class:`steppe.SAM`.

    Of two passes the second runs over all batches that a step accumulates, before gradients are
    clipped; of one, each batch runs at p + e. Loss and logs are those of the first pass. What a
    Trainer notes in its ``compute_loss`` it notes in both. Put it before the Trainer's class::

        class MySAMTrainer(SAMMixin, MyTrainer): ...

    Raises
    ------
    TypeError
        When training: the optimizer is no SAM.
    RuntimeError
        When training: under DeepSpeed or Megatron-LM.
    """

    optimizer: Any
    accelerator: Any
    _passes: list[Callable[[], Tensor]]

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Run a batch's pass; after the last batch that a step accumulates, all second ones."""
        sam = find_sam(self.optimizer)
        refuse_engines(self.accelerator, ENGINES)
        run: Callable[[], Tensor] = partial(
            super().training_step,  # type: ignore[misc]
            model,
            inputs,
            num_items_in_batch,
        )
        if not sam.is_active:
            return run()
        if not sam.has_two_passes:
            with sam.perturbed():
                return run()
        waiting = vars(self).setdefault("_passes", [])
        loss = run()
        waiting.append(run)
        if self.accelerator.sync_gradients:
            try:
                run_second_pass(sam, waiting, partial(self.accelerator.no_sync, model))
            finally:
                waiting.clear()
        return loss


class SAMTrainer(SAMMixin, Trainer):
    """Hugging Face's ``Trainer`` for :class:`steppe.SAM`: see :class:`SAMMixin`.

    Examples
    --------
    Give it SAM as a class, or as an instance by ``optimizers=(sam, None)``::

        given = steppe.SAM, {"base": "steppe.DualAdam", "lr": 1e-3}
        trainer = SAMTrainer(model, args, train_dataset=data, optimizer_cls_and_kwargs=given)
    """


class TrainerDiagnostics(TrainerCallback):
    """Logs the optimizer's ``diagnostics()`` beside the loss, and curvature.

    Names are ``optimizer/alpha`` and so on, and ``monitor/lambda_max`` and so on of what a
    :class:`steppe.landscape.Monitor` has measured since the last log, with ``monitor/step``.

    Parameters
    ----------
    trainer
        Its ``log`` is called: ``trainer.add_callback(TrainerDiagnostics(trainer))``.
    monitor
        Returns a Monitor, given the model and its optimizer, when training begins. Default: None,
        which measures no curvature.

    Notes
    -----
    Diagnostics cost a pass over the optimizer's state each time that the Trainer logs
    (``logging_steps``). A run that is resumed begins a new Monitor.
    """

    def __init__(
        self,
        trainer: Trainer,
        monitor: Callable[[nn.Module, Any], Monitor] | None = None,
    ) -> None:
        self._trainer, self._make = trainer, monitor
        self._monitor: Monitor | None = None
        self._logged = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **held: Any) -> None:
        """Make the Monitor."""
        if self._make is not None:
            self._monitor = self._make(held["model"], _innermost(held["optimizer"]))
            self._logged = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **held: Any) -> None:
        """Let the Monitor measure if it is time."""
        if self._monitor is not None:
            self._monitor.step()

    def on_log(self, args: Any, state: Any, control: Any, **held: Any) -> None:
        """Log after the Trainer has logged the loss: a log of ours before would replace it."""
        if "loss" not in held["logs"]:
            return
        diagnose = getattr(_innermost(held["optimizer"]), "diagnostics", None)
        if diagnose is not None:
            self._trainer.log({f"optimizer/{name}": value for name, value in diagnose().items()})
        if self._monitor is None:
            return
        rows = self._monitor.history[self._logged :]
        self._logged += len(rows)
        for row in rows:
            values = {**row.values, "step": row.step}
            self._trainer.log({f"monitor/{name}": value for name, value in values.items()})


def _innermost(optimizer: Any) -> Any:
    while not hasattr(optimizer, "diagnostics") and "optimizer" in vars(optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def optimizer_named(
    name: str, args: "TrainingArguments", **options: Any
) -> tuple[type[Any], dict[str, Any]]:
    """Return what ``Trainer(optimizer_cls_and_kwargs=…)`` takes, for an optimizer's name.

    lr, betas and ε are those of ``args`` where the optimizer has them, and with ``max_steps`` the
    length of the run; weight decay comes from the Trainer's groups.

    Parameters
    ----------
    name
        A class of steppe or torch.optim in any case, such as "dualadam"; with "+sam", "+asam",
        "+psam", "+msam", "+random" or "+latesam" at its end, SAM's family around it, which needs
        :class:`SAMTrainer`.
    args
        The Trainer's.
    **options
        Of the optimizer, in the place of those of ``args``; ``total_steps`` where the run's length
        is told by epochs.

    Raises
    ------
    ValueError
        There is no such optimizer; the message lists the names.

    Examples
    --------
    ``Trainer(model, args, optimizer_cls_and_kwargs=optimizer_named("adamcm", args), …)``
    """
    known = {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
    }
    if args.max_steps > 0:
        known["total_steps"] = args.max_steps
    return named_optimizer(name, known, options)
