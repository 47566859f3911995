"""SAM's passes under fastai's Learner."""

from functools import partial
from typing import Any

from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision, NonNativeMixedPrecision
from fastai.callback.mixup import MixHandler
from fastai.callback.rnn import ModelResetter
from fastai.callback.training import GradientAccumulation

from steppe.integrations._sam import find_sam
from steppe.optim import SAM

_EXPECTED = (
    'as opt_func=partial(OptimWrapper, opt=partial(steppe.SAM, base="torch.optim.AdamW")) of the '
    "Learner"
)


class FastaiSAM(Callback):  # type: ignore[misc]
    """Gives fastai's Learner the passes of :class:`steppe.SAM`.

    Of two passes the second runs before each step, over all batches that ``GradientAccumulation``
    has collected for it, at p + e; callbacks see its predictions and losses, as those of the
    first, in ``after_pred``, ``after_loss`` and ``before_backward``, so what they change there is
    changed in both. Gradients are clipped after it. Of one pass, each batch runs at p + e. What the
    Learner records is the loss of the first pass. ``MixedPrecision``, schedules, ``freeze`` and
    ``save`` work as without SAM.

    No other optimizer of steppe needs a callback: ``opt_func=partial(OptimWrapper,
    opt=steppe.DualAdam)``.

    Raises
    ------
    TypeError
        When fitting begins: the Learner's optimizer is no SAM.
    ValueError
        When fitting begins: a callback of the Learner does not fit two passes. Those are
        ``NonNativeMixedPrecision``, which steps copies of the parameters; ``ModelResetter``, whose
        models carry state from batch to batch, which the second pass would advance; and ``MixUp``
        or ``CutMix`` with ``GradientAccumulation``, because they know how the last batch was mixed
        only.

    Examples
    --------
    >>> import torch, steppe
    >>> from functools import partial
    >>> from fastai.data.core import DataLoaders
    >>> from fastai.data.load import DataLoader
    >>> from fastai.learner import Learner
    >>> from fastai.optimizer import OptimWrapper
    >>> data = torch.utils.data.TensorDataset(torch.randn(16, 3), torch.randn(16, 1))
    >>> learner = Learner(
    ...     DataLoaders(DataLoader(data, bs=8), DataLoader(data, bs=8)),
    ...     torch.nn.Linear(3, 1),
    ...     loss_func=torch.nn.MSELoss(),
    ...     opt_func=partial(OptimWrapper, opt=partial(steppe.SAM, base="torch.optim.AdamW")),
    ...     cbs=FastaiSAM(),
    ... )
    >>> with learner.no_bar(), learner.no_logging():
    ...     learner.fit(1, lr=1e-3)
    >>> learner.opt.opt.diagnostics()["ascents"]
    2.0
    """

    # After GradientAccumulation, which skips steps, and before gradients are unscaled and clipped.
    order = MixedPrecision.order - 1
    run_valid = False

    @property
    def _sam(self) -> SAM:
        return find_sam(self.learn.opt, _EXPECTED)

    def before_fit(self) -> None:
        """See that SAM can train, and perturb the passes of methods that take one."""
        self._batches: list[tuple[Any, Any]] = []
        if self._sam.has_two_passes:
            _check_fits(list(self.learn.cbs))
        else:
            self.learn._do_one_batch = partial(self._perturbed_batch, self.learn)

    def after_fit(self) -> None:
        """Give the Learner its own way to run a batch again, and forget batches of no step."""
        self._batches = []
        self.learn.__dict__.pop("_do_one_batch", None)

    def after_backward(self) -> None:
        """Keep the batch for the second pass."""
        if self._sam.has_two_passes and self._sam.is_active:
            self._batches.append((self.learn.xb, self.learn.yb))

    def before_step(self) -> None:
        """Run the second pass over the batches of the step."""
        batches, self._batches = self._batches, []
        if not batches:
            return
        learn = self.learn
        first = learn.xb, learn.yb, learn.pred, learn.loss_grad, learn.loss
        try:
            with self._sam.perturbed():
                for learn.xb, learn.yb in batches:
                    self._pass_again()
        finally:
            learn.xb, learn.yb, learn.pred, learn.loss_grad, learn.loss = first

    def _pass_again(self) -> None:
        """Do what the Learner does with a batch up to its backward pass."""
        learn = self.learn
        for each in learn.cbs:
            # It leaves autocast in after_loss, and enters it in before_batch, which mixes anew.
            if isinstance(each, MixedPrecision):
                each.autocast.__enter__()
        learn.pred = learn.model(*learn.xb)
        learn("after_pred")
        learn.loss_grad = learn.loss_func(learn.pred, *learn.yb)
        learn.loss = learn.loss_grad.clone()
        learn("after_loss")
        learn("before_backward")
        learn._backward()

    def _perturbed_batch(self, learn: Any) -> None:
        run = type(learn)._do_one_batch
        # fastai calls no event after an error, and the callback may be gone since.
        if not learn.training or self not in learn.cbs:
            run(learn)
            return
        self._sam.perturb()
        try:
            run(learn)
        finally:
            # fastai calls no event after an error.
            self._sam.restore()


def _check_fits(callbacks: list[Any]) -> None:
    reasons = {
        NonNativeMixedPrecision: "which steps copies of the parameters: use to_fp16()",
        ModelResetter: "whose model carries state from batch to batch, which a second pass would "
        'advance: use SAM(…, direction="momentum"), which takes one',
    }
    for each in callbacks:
        for kind, reason in reasons.items():
            if isinstance(each, kind):
                raise ValueError(f"FastaiSAM does not fit {kind.__name__}, {reason}")
    kinds = [type(each) for each in callbacks]
    mixing = [kind for kind in kinds if issubclass(kind, MixHandler)]
    if mixing and any(issubclass(kind, GradientAccumulation) for kind in kinds):
        raise ValueError(
            f"FastaiSAM does not fit {mixing[0].__name__} with GradientAccumulation: how the "
            "batches before the last were mixed is known no more; leave one of them out"
        )
