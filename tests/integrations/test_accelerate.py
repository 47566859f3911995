"""SAM in loops with Accelerate: the passes of a plain loop, under accumulation and all the rest."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from torch.utils.data import DataLoader, TensorDataset

import steppe
from helpers.sam_loop import KINDS, data, make_sam, network, same, train
from steppe.integrations.accelerate import passes, prepare

pytestmark = pytest.mark.thorough


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    _reset()  # Other tests leave theirs, as Trainer's.
    yield
    _reset()


def _reset() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def batches(size: int = 8) -> DataLoader:
    return DataLoader(TensorDataset(*data()), size)


def loss_of(model: Any, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]).float(), batch[1])


def accelerated(kind: str, accumulate: int, clip: float | None, precision: str) -> Any:
    model = network()
    sam = make_sam(model.parameters(), kind)
    accelerator = Accelerator(
        cpu=True, gradient_accumulation_steps=accumulate, mixed_precision=precision
    )
    model, optimizer, loader = prepare(accelerator, model, sam, batches())
    steps = 0
    for batch in passes(accelerator, model, optimizer, loader):
        accelerator.backward(loss_of(model, batch))
        if accelerator.sync_gradients:
            steps += 1
            if clip is not None:
                accelerator.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    return accelerator.unwrap_model(model), optimizer, steps


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize(("clip", "precision"), [(None, "no"), (0.1, "no"), (0.1, "bf16")])
def test_the_passes_are_those_of_a_plain_loop(
    kind: str, accumulate: int, clip: float | None, precision: str
) -> None:
    found, optimizer, steps = accelerated(kind, accumulate, clip, precision)
    model = network()
    sam = make_sam(model.parameters(), kind)
    is_bf16 = precision == "bf16"
    train(
        model, sam, list(batches()), loss_of,
        accumulate=accumulate, clip=clip, bf16=is_bf16, whole_windows=False,
    )  # fmt: skip
    same(found, model, bf16=is_bf16)
    assert optimizer.diagnostics() == pytest.approx(sam.diagnostics(), rel=0.05, nan_ok=True)
    assert steps == -(-5 // accumulate)


def test_methods_are_reachable_and_checkpoints_pass_through(tmp_path: Any) -> None:
    accelerator = Accelerator(cpu=True)
    model = network()
    model, optimizer = prepare(accelerator, model, make_sam(model.parameters(), "sam"))
    loss_of(model, data()).backward()
    with optimizer.perturbed():
        loss_of(model, data()).backward()
    optimizer.step()
    assert optimizer.diagnostics()["ascents"] == 1
    with pytest.raises(AttributeError, match="AdamW has no preconditioner"):
        optimizer.preconditioner()
    with pytest.raises(AttributeError):
        optimizer.no_such_thing  # noqa: B018
    accelerator.save_state(str(tmp_path / "state"))
    accelerator.load_state(str(tmp_path / "state"))
    assert optimizer.diagnostics()["ascents"] == 1


def test_a_loop_that_breaks_leaves_the_parameters_as_they_are() -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    model, sam, loader = prepare(accelerator, model, make_sam(model.parameters(), "sam"), batches())
    for number, batch in enumerate(passes(accelerator, model, sam, loader)):
        accelerator.backward(loss_of(model, batch))
        if number == 2:
            moved = [p.detach().clone() for p in model.parameters()]
            break
    assert not any(map(torch.equal, before, moved))
    assert all(map(torch.equal, before, [p.detach() for p in model.parameters()]))


def test_only_sam_has_passes() -> None:
    accelerator = Accelerator(cpu=True)
    model = network()
    model, optimizer = prepare(accelerator, model, steppe.DualAdam(model.parameters()))
    with pytest.raises(TypeError, match=r"is no SAM: expected steppe\.SAM"):
        passes(accelerator, model, optimizer, [])


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_its_checkpoint(kind: str, tmp_path: Any) -> None:
    def run(first: int, last: int) -> Any:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = network(first)
        sam = make_sam(model.parameters(), kind)
        model, optimizer, loader = prepare(accelerator, model, sam, batches())
        if first:
            accelerator.load_state(str(tmp_path / f"{first}"))
        for epoch in range(first, last):
            for batch in passes(accelerator, model, optimizer, loader):
                accelerator.backward(loss_of(model, batch))
                optimizer.step()
                optimizer.zero_grad()
            accelerator.save_state(str(tmp_path / f"{epoch + 1}"))
        return model

    whole = run(0, 2)
    parts = run(1, 2)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_engine_that_steps_by_itself_is_refused() -> None:
    accelerator = Accelerator(cpu=True)
    model = network()
    model, sam = prepare(accelerator, model, make_sam(model.parameters(), "sam"))
    accelerator.state.distributed_type = DistributedType.MEGATRON_LM
    try:
        with pytest.raises(RuntimeError, match="SAM does not train under MEGATRON_LM: its engine"):
            passes(accelerator, model, sam, [])
    finally:
        accelerator.state.distributed_type = DistributedType.NO


@pytest.mark.parametrize("kind", ["sam", "msam"])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_the_last_batch_is_gathered_as_without_sam(kind: str, accumulate: int) -> None:
    """Accelerate drops what fills up the last batch, which it knows when that is fetched."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model = network()
    samples = TensorDataset(*(x[:27] for x in data()))
    model, sam, loader = prepare(
        accelerator, model, make_sam(model.parameters(), kind), DataLoader(samples, 8)
    )
    for _ in range(2):
        found = []
        for batch in passes(accelerator, model, sam, loader):
            accelerator.backward(loss_of(model, batch))
            found.append(len(accelerator.gather_for_metrics(batch[1])))
            sam.step()
            sam.zero_grad()
        sizes = [8, 8, 8, 3]
        windows = [sizes[i : i + accumulate] for i in range(0, 4, accumulate)]
        times = 2 if kind == "sam" else 1
        assert found == [size for window in windows for size in times * window]
        assert not accelerator.gradient_state.in_dataloader


def passes_over(batch: Any, use: Any) -> list[Any]:
    """Return what each pass has got of a batch, before ``use`` has changed it."""
    accelerator = Accelerator(cpu=True)
    model = network()
    model, sam = prepare(accelerator, model, make_sam(model.parameters(), "sam"))
    found = []
    for each in passes(accelerator, model, sam, [batch]):
        found.append(sorted(each))
        loss = use(model, each)
        if loss is not None:
            accelerator.backward(loss)
        sam.step()
        sam.zero_grad()
    return found


def test_what_is_taken_out_of_a_batch_is_there_again() -> None:
    x, y = data()

    def use(model: Any, batch: Any) -> Any:
        inputs = batch.pop("inputs")
        return F.cross_entropy(model(inputs), batch["more"].pop())

    assert passes_over({"inputs": x, "more": [y]}, use) == [["inputs", "more"]] * 2


def test_a_batch_that_is_changed_in_place_is_refused() -> None:
    x, y = data()

    def use(model: Any, batch: Any) -> Any:
        batch["x"].div_(2)
        return F.cross_entropy(model(batch["x"]), y)

    with pytest.raises(RuntimeError, match=r"changed a batch in place.*\(40, 6\).*x = x / 2"):
        passes_over({"x": x}, use)


def test_a_batch_that_the_loop_skips_is_no_step() -> None:
    assert passes_over({"x": data()[0]}, lambda model, batch: None) == [["x"]]


def test_a_loop_whose_iterator_is_held_is_closed() -> None:
    accelerator = Accelerator(cpu=True)
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    model, sam, loader = prepare(accelerator, model, make_sam(model.parameters(), "sam"), batches())
    with closing(passes(accelerator, model, sam, loader)) as held:
        for number, batch in enumerate(held):
            accelerator.backward(loss_of(model, batch))
            if number == 1:
                assert sam.is_perturbed
                break
    assert not sam.is_perturbed
    assert all(map(torch.equal, before, [p.detach() for p in model.parameters()]))


def looped(order: str, accumulate: int, *, left_over: bool = False) -> Any:
    """Train with ``zero_grad`` at the end of the loop or at its beginning."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model = network()
    model, sam, loader = prepare(accelerator, model, make_sam(model.parameters(), "sam"), batches())
    if left_over:
        for _ in passes(accelerator, model, sam, loader):
            accelerator.backward(loss_of(model, next(iter(batches()))))
            break
    for batch in passes(accelerator, model, sam, loader):
        if order == "first":
            sam.zero_grad()
        accelerator.backward(loss_of(model, batch))
        sam.step()
        if order == "last":
            sam.zero_grad()
    return accelerator.unwrap_model(model)


def test_gradients_may_be_cleared_first_or_last() -> None:
    truth = looped("last", 1)
    same(looped("first", 1), truth)
    same(looped("last", 2), looped("last", 2, left_over=True))


def test_clearing_what_is_accumulated_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"zero_grad\(\) before step\(\) would discard.*after"):
        looped("first", 2)


def test_accumulate_inside_of_passes_is_refused() -> None:
    accelerator = Accelerator(cpu=True)
    model = network()
    model, sam, loader = prepare(accelerator, model, make_sam(model.parameters(), "sam"), batches())
    held = passes(accelerator, model, sam, loader)
    next(held)
    with pytest.raises(RuntimeError, match=r"accelerator\.accumulate\(…\) inside of.*leave it out"):
        accelerator.accumulate(model).__enter__()
    held.close()
    with accelerator.accumulate(model):
        pass


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_skipped_batches_are_no_step_however_gradients_are_cleared(
    set_to_none: bool, accumulate: int
) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model = network()
    model, sam, loader = prepare(accelerator, model, make_sam(model.parameters(), "sam"), batches())
    skipped = {tuple(batch[1].tolist()) for batch in list(batches())[:2]}
    for batch in passes(accelerator, model, sam, loader):
        if tuple(batch[1].tolist()) in skipped:
            continue
        accelerator.backward(loss_of(model, batch))
        sam.step()
        sam.zero_grad(set_to_none=set_to_none)
    assert sam.diagnostics()["ascents"] == (3 if accumulate == 1 else 2)
