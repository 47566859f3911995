"""Rehearse a user's task once, before any trial is taken: a mistake is shown where it was made."""

import copy
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import Subset

from steppe.compare.data.datasets import parts_of, size_of
from steppe.compare.data.loading import Part
from steppe.compare.planning.rehearsed_evaluation import rehearse_evaluation, rehearse_robustness
from steppe.compare.tasks.task import LoadedTask, Task
from steppe.compare.tasks.trace import TaskError, explained
from steppe.compare.training.evaluation import batches_for
from steppe.compare.training.reproducibility import reproducible, seed_everything
from steppe.compare.training.run import RunContext, RunSettings

_SHARED = (
    "model() returns models that share memory ({}), so that each run would go on from the weights "
    "of the one before: let it make all parts anew, and copy tensors, as "
    "from_pretrained(vectors.clone())"
)


def new_model(task: Task) -> nn.Module:
    """Make a model as trials do, and see that it can be trained; random numbers go on as before.

    Raises
    ------
    TaskError
        With what is wrong, and the lines of the user's code that led to it.
    """
    with _random_numbers_as_before(), explained("model() fails"):
        seed_everything(0)
        model = task.model()
    if not isinstance(model, nn.Module):
        raise TaskError(f"model() must return a torch.nn.Module, got {type(model).__name__}")
    if any(map(is_lazy, chain(model.parameters(), model.buffers()))):
        raise TaskError(
            "model() has lazy modules, whose shapes are not known: let it run them once on a batch"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TaskError("model() has no parameter that requires a gradient: nothing can be trained")
    return model


@contextmanager
def _random_numbers_as_before() -> Iterator[None]:
    # NumPy's global generator has no context manager.
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002


def rehearse(
    loaded: LoadedTask, model: nn.Module, settings: RunSettings, context: RunContext
) -> None:
    """Compute the loss and its gradient on one batch, and evaluate the samples.

    Parameters
    ----------
    loaded : LoadedTask
        A task, with its data.
    model : Module
        A model of it, as :func:`new_model` makes one.
    settings : RunSettings
        Batch size and number of steps.
    context : RunContext
        The device.

    Raises
    ------
    TaskError
        With what is wrong, and the lines of the user's code that led to it.
    """
    task, data = loaded
    _check_same_again(task, data.fingerprint)
    shared = _check_models(model, new_model(task))
    with reproducible(context):
        seed_everything(0)
        model = model.to(context.device).train()
        first = parts_of(data.train)[0]
        before = copy.deepcopy(model.state_dict())
        loss = _first_loss(task, model, first, settings, context)
        _check_gradients(task, model, loss)
        _check_constant(model, shared)
        with explained("the model's own state_dict() cannot be loaded again"):
            model.load_state_dict(before)
        _check_same_loss(task, loss, _first_loss(task, model, first, settings, context))
        _check_last_batch(task, model, first, settings, context.device)
        _check_schedule(task, model, settings.steps)
        rehearse_evaluation(loaded, model, settings.batch_size, context)
        if settings.robustness:
            rehearse_robustness(loaded, model, settings.batch_size, context)


def _check_same_again(task: Task, fingerprint: str) -> None:
    """Refuse functions that return other samples each time: every worker calls them anew."""
    with explained("the samples cannot be read a second time"):
        again = task.load().data.fingerprint
    if again != fingerprint:
        named = [
            each
            for each in ("data", "train", "validation", "test")
            if callable(getattr(task, each))
        ]
        raise TaskError(
            f"{' or '.join(named) or 'train'}() returns other samples the second time: seed what "
            "it draws, as by torch.Generator().manual_seed(0)"
        )


def _moved(part: Part, device: str) -> Part:
    from accelerate.utils import send_to_device

    return part._replace(batch=send_to_device(part.batch, torch.device(device)))


def _check_models(model: nn.Module, other: nn.Module) -> dict[str, Tensor]:
    """Refuse models that share trained weights, or do not begin alike with one seed.

    Returns the numbers in the buffers that they share, which training must not change.
    """

    def places(tensors: Iterable[tuple[str, Tensor]]) -> dict[int, str]:
        filled = ((name, each) for name, each in tensors if each.numel() and not each.is_meta)
        return {each.untyped_storage().data_ptr(): name for name, each in filled}

    def trained(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        return ((name, each) for name, each in model.named_parameters() if each.requires_grad)

    one, two = places(trained(model)), places(trained(other))
    if shared := sorted(one[place] for place in one.keys() & two.keys()):
        raise TaskError(_SHARED.format(shared[0]))
    others = dict(other.named_parameters())
    for name, param in model.named_parameters():
        if not param.is_meta and name in others and not torch.equal(param, others[name]):
            raise TaskError(
                f"model() makes other weights ({name}) when it is called again with the same seed, "
                "so that optimizers would not begin alike: draw them from the global generator of "
                "torch, NumPy or Python, which are seeded for each trial"
            )
    one, two = places(model.named_buffers()), places(other.named_buffers())
    both = {one[place] for place in one.keys() & two.keys()}
    return {name: each.clone() for name, each in model.named_buffers() if name in both}


def _check_constant(model: nn.Module, shared: Mapping[str, Tensor]) -> None:
    for name, buffer in model.named_buffers():
        if name in shared and not torch.equal(buffer.cpu(), shared[name].cpu()):
            raise TaskError(_SHARED.format(name))


def _first_loss(
    task: Task, model: nn.Module, samples: Any, settings: RunSettings, context: RunContext
) -> Tensor:
    seed_everything(0)
    with explained("a batch of train cannot be read"):
        loader = batches_for(model, samples, settings.batch_size, collate=task.collate_fn)
        (part,) = next(iter(loader))
    with explained(f"the {_name(task)} of the first batch cannot be computed"):
        return task.batch_loss(model, _moved(part, context.device).batch)


def _name(task: Task) -> str:
    return "loss" if task.step is None else "step"


def _check_same_loss(task: Task, loss: Tensor, again: Tensor) -> None:
    """Refuse what no seed repeats: a run would depend on those before it in the same process."""
    one, other = loss.item(), again.item()
    # Some operations on accelerators are not repeatable to the last digit.
    if not math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-12):
        raise TaskError(
            f"{_name(task)} of the first batch is {one:.6g}, and {other:.6g} when it is "
            "computed again with the same weights and seeds: samples, model or loss depend on a "
            "counter or a generator of their own, so that no run could be repeated, or resumed. "
            "Draw from torch's, NumPy's or Python's global generators, and count in a buffer of "
            "the model"
        )


def _check_gradients(task: Task, model: nn.Module, loss: Any) -> None:
    name = _name(task)
    if not isinstance(loss, Tensor):
        raise TaskError(f"{name} must return a tensor, got {type(loss).__name__}")
    if loss.numel() != 1 or loss.is_complex():
        raise TaskError(
            f"{name} must return one real number, the mean over the batch, got a tensor of shape "
            f"{tuple(loss.shape)}: call .mean() on it"
        )
    if not loss.requires_grad:
        raise TaskError(
            f"{name} returns a number that no gradient flows through: it is detached, or computed "
            "under no_grad"
        )
    if not math.isfinite(loss.item()):
        raise TaskError(
            f"{name} of the first batch is {loss.item()}, before any step: a sample or its target "
            "holds NaN, or the loss divides by 0"
        )
    with explained("the first gradient cannot be computed"):
        torch.autograd.backward(loss.sum())
    if all(parameter.grad is None for parameter in model.parameters()):
        raise TaskError(f"{name} does not depend on any parameter of the model")
    model.zero_grad()


def _check_last_batch(
    task: Task, model: nn.Module, samples: Any, settings: RunSettings, device: str
) -> None:
    """See that the epoch's last batch, which may be of one sample, and its parts can be trained."""
    rest = size_of(samples) % settings.batch_size
    if not rest:
        return
    last, parts = Subset(samples, range(rest)), settings.accumulate
    made = next(iter(batches_for(model, last, rest, collate=task.collate_fn, parts=parts)))
    model.train()
    for part in made:
        of = "" if len(made) == 1 else f"a part of {part.size} samples of "
        what = f"{of}an epoch's last batch, of {rest} samples, cannot be trained"
        with explained(f"{what}: choose another batch_size"):
            task.batch_loss(model, _moved(part, device).batch)


def _check_schedule(task: Task, model: nn.Module, steps: int) -> None:
    if task.schedule is None:
        return
    trained = [each for each in model.parameters() if each.requires_grad]
    with explained("schedule fails"):
        optimizer = torch.optim.SGD(trained, lr=0.1)
        made = task.schedule(optimizer, steps)
    if not callable(getattr(made, "step", None)):
        raise TaskError(f"schedule must return a scheduler of torch, got {type(made).__name__}")
    with explained("schedule's step() fails"):
        rates = [_rates(task.schedule, trained, lr, steps) for lr in (0.1, 0.01)]
    if rates[0] == rates[1]:
        raise TaskError(
            "schedule sets lr to the same values whatever the optimizer's lr is, so that to search "
            'for lr would do nothing: begin with that of its groups, as [group["lr"] for group in '
            "optimizer.param_groups]"
        )


def _rates(schedule: Any, params: Sequence[Tensor], lr: float, steps: int) -> list[float]:
    optimizer = torch.optim.SGD(params, lr=lr)
    made, found = schedule(optimizer, steps), []
    for _ in range(steps):
        found += [group["lr"] for group in optimizer.param_groups]
        # Without gradients it changes nothing.
        optimizer.step()
        made.step()
    return found
