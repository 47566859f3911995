"""SAM's passes in Hugging Face's ``Trainer``, and optimizers by name for it."""

import inspect
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from types import CodeType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from steppe.integrations._kept_batch import KeptBatch
from steppe.integrations._names import named_optimizer
from steppe.integrations._sam import find_sam, run_second_pass, unwrapped
from steppe.integrations.accelerate import ENGINES, refuse_engines
from steppe.landscape import Monitor

if TYPE_CHECKING:
    from transformers import TrainingArguments


class SAMMixin:
    """Gives a ``Trainer`` the passes of :class:`steppe.SAM`.

    Of two passes the second runs over all batches that a step accumulates, before gradients are
    clipped; of one, each batch runs at p + e. Put it before the Trainer's class::

        class MySAMTrainer(SAMMixin, MyTrainer): ...

    Loss, logs and the numbers that a Trainer counts (steps, tokens seen, TRL's metrics) are those
    of the first pass; other lists that it fills in ``compute_loss`` get a value of each pass. The
    second pass takes what the first one's ``_prepare_inputs`` returned, so that a Trainer which
    generates there, as TRL's ``GRPOTrainer``, has the same completions in both.

    Raises
    ------
    TypeError
        When training: the optimizer is no SAM.
    RuntimeError
        When training: under DeepSpeed or Megatron-LM; or of two passes, with a ``training_step``
        that calls neither its base's nor ``compute_loss``, as of TRL's ``OnlineDPOTrainer``, which
        generates other completions in each pass.
    """

    optimizer: Any
    accelerator: Any
    _passes: tuple[Callable[[], Tensor], ...] = ()
    _prepared: list[KeptBatch] | None = None
    _replayed: Iterator[KeptBatch] | None = None

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Run a batch's pass; after the last batch that a step accumulates, all second ones."""
        sam = find_sam(self.optimizer)
        refuse_engines(self.accelerator, ENGINES)
        step: Callable[..., Tensor] = super().training_step  # type: ignore[misc]

        def run(batch: Any) -> Tensor:
            return step(model, batch, num_items_in_batch)

        if not sam.is_active:
            return run(inputs)
        if not sam.has_two_passes:
            with sam.perturbed():
                return run(inputs)
        _refuse_own_steps(type(self))
        kept, counted, self._prepared = KeptBatch(inputs), self._counted(), []
        try:
            loss = run(inputs)
        finally:
            prepared, self._prepared = self._prepared, None
        self._passes = (*self._passes, partial(self._run_again, run, kept, prepared, counted))
        if self.accelerator.sync_gradients:
            waiting, self._passes = self._passes, ()
            run_second_pass(sam, waiting, partial(self.accelerator.no_sync, model))
        return loss

    def _inner_training_loop(self, *arguments: Any, **given: Any) -> Any:
        """Begin without the batches of a step that was not taken, as after an error."""
        self._passes = ()
        return super()._inner_training_loop(*arguments, **given)  # type: ignore[misc]

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Prepare a batch, once for both passes: what prepares it may generate or count."""
        if self._replayed is not None:
            if (kept := next(self._replayed, None)) is None:
                raise RuntimeError(
                    "the second pass prepares inputs that the first one has not, so SAM cannot run "
                    "it on the same samples: let training_step prepare them in both"
                )
            return kept.again()
        prepared = super()._prepare_inputs(inputs)  # type: ignore[misc]
        if self._prepared is not None:
            self._prepared.append(KeptBatch(prepared))
        return prepared

    def _run_again(
        self,
        run: Callable[[Any], Tensor],
        batch: KeptBatch,
        prepared: list[KeptBatch],
        counted: dict[str, Any],
    ) -> Tensor:
        """Run a batch's pass on what it had before; what it counts stays as it was."""
        now = self._counted()
        # A count may be of the class before the first batch.
        for name in now.keys() - counted.keys():
            delattr(self, name)
        vars(self).update(counted)
        self._replayed = iter(prepared)
        try:
            return run(batch.again())
        finally:
            self._replayed = None
            vars(self).update(now)

    def _counted(self) -> dict[str, Any]:
        """Return the numbers that a Trainer counts, and what TRL's trainers log."""
        return {
            name: deepcopy(value)
            for name, value in vars(self).items()
            if type(value) in (int, float) or name == "_metrics"
        }


def _refuse_own_steps(kind: type) -> None:
    """Refuse a training_step that takes its samples itself: a second pass gets other ones."""
    for cls in kind.__mro__[kind.__mro__.index(SAMMixin) + 1 :]:
        step = vars(cls).get("training_step")
        if cls is Trainer or step is None:
            continue
        code = getattr(inspect.unwrap(step), "__code__", None)
        if code is not None and not {"training_step", "compute_loss"} & set(_names_in(code)):
            raise RuntimeError(
                f"{cls.__name__}.training_step calls neither super().training_step nor "
                "self.compute_loss, so SAM cannot run its second pass on the same samples: let it "
                "call one of them, or take SAM(direction='momentum'), which needs one pass"
            )


def _names_in(code: CodeType) -> Iterator[str]:
    """Yield the names that a function refers to, and those that functions inside of it do."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


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
        self._log_measurements()
        diagnose = getattr(_innermost(held["optimizer"]), "diagnostics", None)
        if diagnose is not None:
            self._trainer.log({f"optimizer/{name}": value for name, value in diagnose().items()})

    def on_train_end(self, args: Any, state: Any, control: Any, **held: Any) -> None:
        """Log what has been measured since the last log."""
        self._log_measurements()

    def _log_measurements(self) -> None:
        if self._monitor is None:
            return
        rows = self._monitor.history[self._logged :]
        self._logged += len(rows)
        for row in rows:
            values = {**row.values, "step": row.step}
            self._trainer.log({f"monitor/{name}": value for name, value in values.items()})


def _innermost(optimizer: Any) -> Any:
    """Return what has diagnostics; without any, the optimizer that all others wrap."""
    wrapped = list(unwrapped(optimizer))
    return next((each for each in wrapped if hasattr(each, "diagnostics")), wrapped[-1])


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
