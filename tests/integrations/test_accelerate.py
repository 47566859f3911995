"""SAM in loops with Accelerate: the passes of a plain loop, under accumulation and all the rest."""

from collections.abc import Iterator
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
    yield
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
