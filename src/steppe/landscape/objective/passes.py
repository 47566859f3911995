"""Run a model on the data again and again, always in the same state, and restore it afterwards.

:class:`~steppe.landscape.objective.objective.Objective` computes losses of what is run here.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from steppe.landscape.objective.parameter_choice import Params
from steppe.landscape.objective.parameters import ParameterSpace, scatter
from steppe.landscape.objective.random_state import RandomState
from steppe.landscape.objective.reachable import reachable
from steppe.landscape.objective.restore_model import LossState, changes_with_mode, restore_on_exit
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
        params: Params | None,
        train: bool,
    ) -> None:
        check_data(data)
        super().__init__(model, params)
        if not isinstance(train, bool):
            raise TypeError(f"train must be True or False, got {train!r}")
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
            frozen = [p for p in guarded if id(p) not in moved]
            moved |= {id(param): param for param in guarded}
            restorer = stack.enter_context(
                restore_on_exit(self.model, moved.values(), self._state, frozen)
            )
            stack.enter_context(_without_gradients_of_its_own(every))
            _set_mode(self.model, self.train)
            restorer.settle()
            self._reset = restorer.reset
            self.compares_losses = moves_params
            self._interruptible = interruptible
            stack.callback(setattr, self, "_interruptible", nullcontext)
            yield
            self._needs_state |= bool(needed)
            if known is None and not moves_params:
                self._changed_by_forward = [
                    each.tensor
                    for each in restorer.parameters
                    if not (each.is_untouched and torch.equal(each.tensor, each.value))
                ]
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

    @contextmanager
    def eval_instead(self, elsewhere: int = 0) -> Iterator[None]:
        """Put the model into ``eval()`` mode for a while, inside of :meth:`evaluation_mode`.

        Parameters
        ----------
        elsewhere : int, default 0
            From 1 on its parameters are other ones meanwhile, random ones by this seed, by which
            the outputs of different samples differ: those of a new network may be all alike.
        """
        if not self.train and not elsewhere:
            yield
            return
        before = self._reset
        before()
        # A class may merge weights, or compute them anew, when its mode changes.
        writes = elsewhere > 0 or any(map(changes_with_mode, self.model.modules()))
        moved = self.model.parameters() if writes else ()
        with restore_on_exit(self.model, moved, self._state) as restorer:
            if elsewhere:
                scatter(self.model, elsewhere)
            _set_mode(self.model, train=False)
            restorer.settle(is_changed=elsewhere > 0)
            self._reset = restorer.reset
            try:
                yield
            finally:
                self._reset = before

    def outputs(self, batch: Batch, params: Sequence[Tensor] | None = None) -> tuple[Any, Any]:
        """Run the model on a copy of a batch, by default with its own parameters.

        Parameters
        ----------
        batch : Batch
            From :meth:`batches`.
        params : sequence of Tensor, optional
            Tensors to use in place of :attr:`params`, in their order.

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
        # Every place of each parameter, but of a module that stands in several places only the
        # first: functional_call itself leaves replaced tensors behind in such modules.
        outputs = torch.func.functional_call(
            self.model, self._at_all_places(params), own.inputs, dict(own.keywords),
            tie_weights=False,
        )  # fmt: skip
        return outputs, own.targets

    def _at_all_places(self, params: Sequence[Tensor]) -> dict[str, Tensor]:
        instead = {id(own): other for own, other in zip(self.params, params, strict=True)}
        return {
            f"{place}.{name}" if place else name: instead[id(own)]
            for place, module in self.model.named_modules()
            for name, own in module._parameters.items()
            if id(own) in instead
        }


def _set_mode(model: nn.Module, train: bool) -> None:
    try:
        # Not train(False): a class may have an eval() of its own.
        if train:
            model.train()
        else:
            model.eval()
    except NotImplementedError as error:
        raise ValueError(
            "model has no train() and eval(), as models from torch.export: pass the module that it "
            "was exported from"
        ) from error


@contextmanager
def _without_gradients_of_its_own(params: Iterable[Tensor]) -> Iterator[None]:
    """Keep what a forward pass adds to ``.grad``, as an attack on the inputs does, from there."""
    found = [(param, param.grad) for param in params if param.is_leaf and param.requires_grad]
    for param, _ in found:
        param.grad = None
    try:
        yield
    finally:
        for param, grad in found:
            param.grad = grad


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
