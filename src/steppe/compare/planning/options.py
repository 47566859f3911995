"""The options of a study, written once.

From :class:`StudyOptions` come the options of ``steppe compare``, their grouped help with defaults
(cyclopts reads the docstring), and the checks of ranges, which :func:`plan_study
<steppe.compare.planning.study.plan_study>` makes for callers in Python too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_type_hints

from cyclopts import Parameter

from steppe._shared.cli_options import (
    AT_LEAST_ONE,
    FINITE_NOT_NEGATIVE,
    FINITE_POSITIVE,
    NAMES,
    SEED,
    SHARE_ABOVE_ZERO,
    SHARE_BELOW_ONE,
    THREAD_COUNT,
    UP_TO_TEN,
    Count,
    Limit,
    group,
    limited,
)
from steppe.compare.records.choices import TRACKERS, Precision, Primary, Scale, Schedule, check_task

STUDY = group("Study", 10)
_MODEL = group("Model and data", 20)
_TRAINING = group("Training", 30)
_FIXED = group("Hyperparameters fixed for every optimizer, instead of searched", 40)


@Parameter(name="*")
@dataclass(frozen=True)
class StudyOptions:
    """What a user may choose of a study; None takes the preset's value or else the task's own.

    Attributes
    ----------
    optimizers : sequence of str, optional
        Optimizers to compare, with commas between; the first one is the baseline. A name is a class
        of steppe or torch.optim in lower case, such as dualadam or adamw; adabelief, adabound, adan
        or lion of pytorch_optimizer; a variant such as dualadam-scale-free, or dualadam-int8 and
        adamcm-bf16 with state in 8 bits or bfloat16; or package.module:Class. Append +sam to wrap
        the optimizer in SAM, or +asam (adaptive), +psam (preconditioned), +msam (along the
        momentum, one pass), +random (one pass) or +latesam (in the last fifth of the run); +ema to
        average the weights, +warmup to let lr rise linearly until DualAdam's switch, +beta1 to
        search the momentum too, and +2epochs to train twice as long. Control optimizers are added:
        adam+warmup beside optimizers that switch, adamw+beta1 beside critical momenta, and the
        baseline with +2epochs beside +sam, +asam and +psam.
    scale : {"full", "small"}, default "full"
        Amount of data and epochs. full is the size of published runs: it takes hours for most
        tasks, days without a GPU. small is for two CPU cores.
    budget : int, optional
        How many trials a user would try, taking the best by validation: verdicts are on the best of
        so many. Default: 4, or the preset's.
    trials : int, optional
        Trials of each optimizer, at least three times the budget: random settings in its own
        search space, each with a seed of its own. More trials find smaller differences. Each
        optimizer takes six runs more: three untuned, three at its recommended settings. Default:
        24, or the preset's.
    primary : {"score", "loss"}, default "score"
        What verdicts are given on. The loss sees far smaller differences than accuracy.
    lr_decades : float, optional
        Decades that lr is searched in, about the middle of each optimizer's range. With fewer,
        smaller differences are found, if the best lr is among them. Default: the whole range,
        which has three.
    study_seed : int, default 0
        Seed of all settings, weights and data orders.
    robustness : bool, default False
        Measure each run with rounded weights, noise on weights and corrupted inputs too, on
        validation and test data. Takes about thirty evaluations of 4 000 samples a run.
    then : str, optional
        Fine-tune each trained model on this task, with modifiers or without, and measure what it
        forgets: the loss on the first task at a common loss on the second. It must have the same
        inputs and no more classes. Takes 600 steps and 28 evaluations of 4 000 samples a run.
    then_loss : float, optional
        The second task's validation loss that forgetting is read at. Default: where 25 % of the way
        is left from that before fine-tuning to the lowest, medians over the baseline's trials.
    author : str, default ""
        Who made the study, for its page.
    note : str, default ""
        What the page says of the study besides.
    model : str, optional
        Name of the model. For finetune: smollm2, a directory, or a name on the Hugging Face hub,
        each also with +lora. Default: the task's.
    epochs : int, optional
        Passes over the training data. Default: the task's.
    batch_size : int, optional
        Samples in a batch. Default: the task's.
    samples : int, optional
        Number of training samples: of sequences for text, of images in each task for a stream.
        Default: what --scale says.
    seq_length : int, optional
        Tokens in a sequence of text. Default: the task's.
    schedule : {"constant", "cosine", "cosine-epochs"}, optional
        Course of lr. cosine falls to a thousandth, step by step; cosine-epochs changes lr once an
        epoch. Default: the preset's, or cosine; for streams constant.
    warmup : float, default 0
        Share of the run in which lr rises linearly to its peak, for every optimizer.
    precision : {"no", "bf16", "fp16"}, optional
        Number format of autocast; no is float32 throughout. Default: the preset's, or no; for
        finetune bf16.
    grad_accumulation : int, default 1
        Number of parts that each batch is split into to save memory; their gradients are summed.
    max_grad_norm : float, optional
        Clip gradients to this L2 norm. Default: no clipping.
    early_stopping : bool, default False
        Evaluate and keep the weights of the epoch with the best validation score, of equal ones
        with the lower loss, instead of the last epoch's.
    lr : float, optional
        Learning rate.
    weight_decay : float, optional
        Weight decay.
    switch_rate : float, optional
        DualAdam's ξ: after 1/ξ steps it has switched to Adam, and +warmup has ended. The published
        8e-5 is 12 500 steps, 16 % of a 200-epoch run.

    Examples
    --------
    >>> StudyOptions(["adamw", "dualadam"], max_grad_norm=0.0).check()
    Traceback (most recent call last):
        ...
    ValueError: max-grad-norm must be a finite number above 0, got 0.0
    """

    optimizers: Annotated[Sequence[str] | None, STUDY, NAMES] = None
    scale: Annotated[Scale, STUDY] = "full"
    budget: Annotated[Count, STUDY] = None
    trials: Annotated[Count, STUDY] = None
    primary: Annotated[Primary, STUDY] = "score"
    lr_decades: Annotated[float | None, STUDY, UP_TO_TEN, limited(UP_TO_TEN)] = None
    study_seed: Annotated[int, STUDY, SEED, limited(SEED)] = 0
    robustness: Annotated[bool, STUDY, Parameter(negative="")] = False
    then: Annotated[str | None, STUDY, Parameter(metavar="TASK")] = None
    then_loss: Annotated[float | None, STUDY, FINITE_POSITIVE, limited(FINITE_POSITIVE)] = None
    author: Annotated[str, STUDY, Parameter(metavar="NAME", show_default=False)] = ""
    note: Annotated[str, STUDY, Parameter(metavar="TEXT", show_default=False)] = ""
    model: Annotated[str | None, _MODEL, Parameter(metavar="NAME")] = None
    epochs: Annotated[Count, _MODEL] = None
    batch_size: Annotated[Count, _MODEL] = None
    samples: Annotated[Count, _MODEL] = None
    seq_length: Annotated[Count, _MODEL] = None
    schedule: Annotated[Schedule | None, _TRAINING] = None
    warmup: Annotated[float, _TRAINING, SHARE_BELOW_ONE, limited(SHARE_BELOW_ONE)] = 0.0
    precision: Annotated[Precision | None, _TRAINING] = None
    grad_accumulation: Annotated[int, _TRAINING, AT_LEAST_ONE, limited(AT_LEAST_ONE)] = 1
    max_grad_norm: Annotated[float | None, _TRAINING, FINITE_POSITIVE, limited(FINITE_POSITIVE)] = (
        None
    )
    early_stopping: Annotated[bool, _TRAINING, Parameter(negative="")] = False
    lr: Annotated[float | None, _FIXED, FINITE_POSITIVE, limited(FINITE_POSITIVE)] = None
    weight_decay: Annotated[
        float | None, _FIXED, FINITE_NOT_NEGATIVE, limited(FINITE_NOT_NEGATIVE)
    ] = None
    switch_rate: Annotated[float | None, _FIXED, SHARE_ABOVE_ZERO, limited(SHARE_ABOVE_ZERO)] = None

    def __post_init__(self) -> None:
        # Of 1 and 1.0 a study would have two names, as of its hash.
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if float in (hint, *get_args(hint)) and type(value) is int:
                object.__setattr__(self, name, float(value))

    def check(self) -> None:
        """Refuse values outside of their range.

        Raises
        ------
        ValueError
            With the option's name, what it must be, and what it is.
        TypeError
            ``then`` is a task itself.
        """
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            option, value = name.replace("_", "-"), getattr(self, name)
            for limit in hint.__metadata__:
                if isinstance(limit, Limit):
                    limit.check(option, value)
            check_choice(option, value, _choices(hint.__origin__))
        self._check_second_task()

    def _check_second_task(self) -> None:
        if self.then is None:
            if self.then_loss is not None:
                raise ValueError(f"then-loss must come with then, got {self.then_loss} alone")
            return
        if not isinstance(self.then, str):
            raise TypeError(
                f"then must be a task's name, got {type(self.then).__name__}: put a task of your "
                "own into a file, and name it, as 'mytask.py:task'"
            )
        check_task(self.then)


def check_choice(option: str, value: str | None, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices, if there are any; None is a default.

    Raises
    ------
    ValueError
        With the option's name, the choices, and the value.
    """
    if choices and value is not None and value not in choices:
        raise ValueError(f"{option} must be one of {', '.join(choices)}, got {value!r}")


def check_where(threads: int, track: str) -> None:
    """Refuse a run without CPU threads, or a tracker that is not known.

    Raises
    ------
    ValueError
        With the option's name, what it must be, and what it is.
    """
    THREAD_COUNT.check("threads", threads)
    check_choice("track", track or None, TRACKERS)


def _choices(kind: Any) -> tuple[str, ...]:
    """Return the values of a ``Literal``, or of one in a union; empty for other types."""
    literals = [each for each in (kind, *get_args(kind)) if str(each).startswith("typing.Literal")]
    return get_args(literals[0]) if literals else ()
