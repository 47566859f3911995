"""Run a model on the data again and again, always in the same state, and restore it afterwards.

:class:`~steppe.landscape.objective.objective.Objective` computes losses of what is run here.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from steppe._shared.interrupts import uninterrupted
from steppe.landscape.objective.batches import Batch, Batches, check_data, read_batch
from steppe.landscape.objective.exact_passes import (
    exact_passes,
    has_renormed_embeddings,
    renormed_embeddings,
)
from steppe.landscape.objective.parameters import ParameterSpace
from steppe.landscape.objective.random_state import RandomState
from steppe.landscape.objective.reachable import reachable
from steppe.landscape.objective.restore_model import LossState, restore_on_exit
from steppe.landscape.objective.same_data import SameData

# What follows a loader's last batch, which may be None.
_END = object()

# Random generators and torch's choice of kernels belong to the process.
_MEASURING = threading.RLock()


class RepeatedPasses(ParameterSpace):
    """Passes of a model over data, each of which starts from the same state.

    Parameters
    ----------
    model, loss_fn, data, params, train
        As in :class:`~steppe.landscape.objective.objective.Objective`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: object,
        data: Batches,
        params: Iterable[Tensor] | None,
        train: bool,
    ) -> None:
        check_data(data)
        super().__init__(model, params)
        self.data, self.train = data, train
        held = [*reachable(model), *reachable(loss_fn)]
        self._random = RandomState(model, data, held)
        self._state = LossState(model, loss_fn, held)
        self._same_data = SameData(data)
        self._reset: Callable[[], None] = lambda: None
        self._interruptible: Callable[[], AbstractContextManager[None]] = nullcontext
        # As weights that are masked or clipped: unknown until a pass has been made.
        self._changed_by_forward: list[Tensor] | None = None
        self._needs_state = False
        #: Whether losses of several passes are to be compared with each other.
        self.compares_losses = False

    def take_batches(self, batches: list[Batch]) -> None:
        """Go through other batches from now on, which have been read, inside of a pass."""
        self.data, self._same_data = batches, SameData(batches)
        self._random = self._random.of_model()

    @contextmanager
    def evaluation_mode(
        self,
        moves_params: bool = False,
        moves_buffers: bool = False,
        differentiates_twice: bool = False,
    ) -> Iterator[None]:
        """Prepare the model for measuring, and restore it on leaving.

        Inside, the model is in ``train()`` or ``eval()`` mode as asked for, each forward pass of a
        batch starts from the same buffers and random numbers, and all operations can be
        differentiated twice (:func:`~steppe.landscape.objective.exact_passes.exact_passes`).
        Ctrl-C takes effect between batches only, as within one torch may have exchanged the model's
        parameters. What is changed is the process's: other threads wait until the block ends.

        Parameters
        ----------
        moves_params : bool, default False
            Whether parameters will be changed inside; they are then copied, and restored too.
        moves_buffers : bool, default False
            Whether buffers will be changed inside: forward passes start from what they are then.
        differentiates_twice : bool, default False
            Whether second derivatives will be taken, which need embeddings without ``max_norm``.
        """
        with uninterrupted() as interruptible, ExitStack() as stack:
            stack.enter_context(_only_one_thread(interruptible))
            needed = stack.enter_context(exact_passes(self.model, self.device))
            stack.enter_context(self._random.restored())
            if differentiates_twice:
                stack.enter_context(renormed_embeddings(self.model))
            moved = {id(param): param for param in self.params} if moves_params else {}
            known = self._changed_by_forward
            every = (*self.model.parameters(), *self._state.parameters)
            guarded = [p for p in every if not p.is_meta] if known is None else known
            # Only parameters that nobody else moves tell whether the forward pass does.
            before = [(p, p.detach().clone()) for p in guarded if id(p) not in moved]
            moved |= {id(param): param for param in guarded}
            restorer = stack.enter_context(restore_on_exit(self.model, moved.values(), self._state))
            self._reset = (lambda: None) if moves_buffers else restorer.reset
            _set_mode(self.model, self.train)
            self.compares_losses = moves_params and not moves_buffers
            self._interruptible = interruptible
            stack.callback(setattr, self, "_interruptible", nullcontext)
            yield
            self._needs_state |= bool(needed)
            if known is None and not moves_params:
                self._changed_by_forward = [p for p, v in before if not torch.equal(p, v)]
        # A graph that refers to what has been put back cannot be differentiated any more.
        self._needs_state |= restorer.has_written

    @property
    def needs_evaluation_mode(self) -> bool:
        """Whether graphs of passes can be differentiated inside of :meth:`evaluation_mode` only.

        Passes change parameters or buffers, which are put back, or are computed once more.
        """
        is_changed = bool(self._changed_by_forward) or has_renormed_embeddings(self.model)
        return is_changed or self._needs_state

    def batches(self) -> Iterator[Batch]:
        """Go through the data; inside :meth:`evaluation_mode`, which restores the random state.

        Raises
        ------
        ValueError
            A batch is neither a pair nor a mapping, or is another one than in the first pass.
        """
        # A shuffled loader with drop_last leaves out the same samples in every pass.
        self._random.begin_pass()
        source = iter(self.data)
        for position in count():
            self._random.begin_batch(position)
            with self._interruptible():
                batch = next(source, _END)
            if batch is _END:
                break
            self._same_data.batch(position, batch)
            yield read_batch(position, batch, self.device)
        self._same_data.end(position)

    def outputs(self, batch: Batch, params: Mapping[str, Tensor] | None = None) -> tuple[Any, Any]:
        """Run the model on a copy of a batch, by default with its own parameters.

        Parameters
        ----------
        batch : Batch
            From :meth:`batches`.
        params : mapping of Tensor, optional
            Tensors to use in place of the model's parameters, by name.

        Returns
        -------
        outputs, targets
            What the model returns; and a copy of the targets, as the model has left them.
        """
        # Each vector of a block may need a forward pass of its own, with the same dropout.
        self._reset()
        self._random.begin_forward(batch.position)
        own = batch.copied()
        if params is None:
            return self.model(*own.inputs, **own.keywords), own.targets
        replaced, keywords = dict(params), dict(own.keywords)
        outputs = torch.func.functional_call(self.model, replaced, own.inputs, keywords)
        return outputs, own.targets


def _set_mode(model: nn.Module, train: bool) -> None:
    try:
        model.train(train)
    except NotImplementedError as error:
        raise ValueError(
            "model has no train() and eval(), as models from torch.export: pass the module that it "
            "was exported from"
        ) from error


@contextmanager
def _only_one_thread(interruptible: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Wait until no other thread measures; Ctrl-C ends the wait."""
    while not _MEASURING.acquire(timeout=0.1):
        with interruptible():
            pass
    try:
        yield
    finally:
        _MEASURING.release()
