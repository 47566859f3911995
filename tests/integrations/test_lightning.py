"""SAM under Lightning's automatic optimization: a plain loop's passes, under accumulation too."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import steppe
from helpers.sam_loop import KINDS, data, make_sam, network, same, train
from helpers.torchvision_shim import torchvision  # noqa: F401
from steppe.integrations.lightning import LightningDiagnostics, LightningSAM
from steppe.landscape import Monitor

import lightning.pytorch as pl  # isort: skip
from lightning.pytorch.plugins import MixedPrecision  # isort: skip

pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore")]


class Module(pl.LightningModule):
    """A module as one writes it, which counts what it logs."""

    def __init__(self, make: Any, form: str = "tensor") -> None:
        super().__init__()
        self.net, self.make, self.form = network(), make, form
        self.logged: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self.net(batch[0]).float(), batch[1])
        self.log("loss", loss, on_epoch=True, on_step=True)
        return {"loss": loss} if self.form == "dict" else loss

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


class WithoutIndex(Module):
    def training_step(self, batch: Any) -> Tensor:  # type: ignore[override]
        return super().training_step(batch, 0)


def loader(size: int = 8) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data()), size)


def trainer(out: Path, *callbacks: Any, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        **{
            "max_epochs": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": out,
            "callbacks": list(callbacks),
            **options,
        }
    )


def loss_of(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]).float(), batch[1])


def plain(kind: str, epochs: int = 1, **options: Any) -> tuple[torch.nn.Module, steppe.SAM]:
    model = network()
    sam = make_sam(model.parameters(), kind)
    for _ in range(epochs):
        train(model, sam, list(loader()), loss_of, whole_windows=False, **options)
    return model, sam


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize(("clip", "precision"), [(None, "32"), (0.1, "32"), (0.1, "bf16-mixed")])
def test_the_passes_are_those_of_a_plain_loop(
    kind: str, accumulate: int, clip: float | None, precision: str, tmp_path: Path
) -> None:
    module = Module(lambda params: make_sam(params, kind), "dict" if accumulate == 2 else "tensor")
    torch.manual_seed(7)
    trainer(
        tmp_path, LightningSAM(), accumulate_grad_batches=accumulate, gradient_clip_val=clip,
        precision=precision,
    ).fit(module, loader())  # fmt: skip
    is_bf16 = precision != "32"
    model, _ = plain(kind, accumulate=accumulate, clip=clip, bf16=is_bf16)
    same(module.net, model, bf16=is_bf16)
    assert "training_step" not in vars(module)
    assert "log" not in vars(module)


@pytest.mark.parametrize("kind", ["sam", "msam"])
@pytest.mark.parametrize("scale", [64.0, 2.0**40])
def test_a_grad_scaler_unscales_the_second_pass(kind: str, scale: float, tmp_path: Path) -> None:
    """Half precision, as on GPUs; of the large scale two steps are skipped."""
    module = Module(lambda params: make_sam(params, kind))
    torch.manual_seed(7)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=2.0**-12)
    trainer(
        tmp_path, LightningSAM(), accumulate_grad_batches=2, gradient_clip_val=0.1, max_epochs=3,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)],
    ).fit(module, loader())  # fmt: skip
    model = network()
    sam = make_sam(model.parameters(), kind)
    skipped = 2 if scale > 64 else 0
    windows = [list(loader())[i : i + 2] for _ in range(3) for i in (0, 2, 4)]
    for window in windows[skipped:]:
        train(model, sam, window, loss_of, accumulate=2, clip=0.1, whole_windows=False)
    for one, other in zip(module.net.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)
    assert sam.diagnostics()["ascents"] > 0


def test_a_step_without_an_index_and_batches_of_the_end(tmp_path: Path) -> None:
    module = WithoutIndex(lambda params: make_sam(params, "sam"))
    trainer(tmp_path, LightningSAM(), accumulate_grad_batches=4, max_epochs=2).fit(module, loader())
    model, _ = plain("sam", epochs=2, accumulate=4)
    same(module.net, model)


def test_what_is_logged_is_the_first_pass(tmp_path: Path) -> None:
    """As of the base at lr 0: the parameters stay, and so does the loss, however far e goes."""
    seen = []
    for make, callbacks in (
        (lambda ps: torch.optim.SGD(ps, lr=0.0), []),
        (lambda ps: steppe.SAM(ps, torch.optim.SGD, lr=0.0, rho=50.0), [LightningSAM()]),
    ):
        run = trainer(tmp_path, *callbacks, accumulate_grad_batches=2)
        run.fit(Module(make), loader())
        seen.append(run.callback_metrics["loss_epoch"].item())
    assert seen[0] == pytest.approx(seen[1], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_its_checkpoint(kind: str, tmp_path: Path) -> None:
    def fitted(epochs: int, resume: str | None = None) -> tuple[Module, pl.Trainer]:
        module = Module(lambda params: make_sam(params, kind))
        run = trainer(tmp_path, LightningSAM(), max_epochs=epochs, accumulate_grad_batches=2)
        torch.manual_seed(7)
        run.fit(module, loader(), ckpt_path=resume, weights_only=False)
        return module, run

    whole, _ = fitted(2)
    _, run = fitted(1)
    run.save_checkpoint(tmp_path / "half.ckpt")
    parts, _ = fitted(2, str(tmp_path / "half.ckpt"))
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)


class Failing(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.is_second or (self.kind != "sam" and batch_idx == 1):
            raise RuntimeError("stopped")
        self.is_second = self.kind == "sam"
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("kind", ["sam", "msam"])
def test_a_pass_that_fails_leaves_the_parameters_as_they_are(kind: str, tmp_path: Path) -> None:
    module = Failing(lambda params: make_sam(params, kind))
    module.is_second, module.kind = False, kind
    before = [p.detach().clone() for p in module.parameters()]
    run = trainer(tmp_path, LightningSAM(), accumulate_grad_batches=2 if kind == "msam" else 1)
    with pytest.raises(RuntimeError, match="stopped"):
        run.fit(module, loader())
    assert all(map(torch.equal, before, [p.detach() for p in module.parameters()]))
    assert not {"training_step", "log"} & vars(module).keys()


def test_what_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    module = Module(lambda params: torch.optim.AdamW(params))
    with pytest.raises(TypeError, match=r"optimizer=AdamW is no SAM: expected steppe\.SAM"):
        trainer(tmp_path, LightningSAM()).fit(module, loader())
    manual = Module(lambda params: make_sam(params, "sam"))
    manual.automatic_optimization = False
    with pytest.raises(ValueError, match="does not fit automatic_optimization=False: run the sec"):
        trainer(tmp_path, LightningSAM()).fit(manual, loader())


def test_an_engine_that_steps_by_itself_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As DeepSpeed's strategy, which is not installed here."""
    run = trainer(tmp_path, LightningSAM())
    monkeypatch.setattr(type(run.strategy), "handles_gradient_accumulation", True)
    module = Module(lambda params: make_sam(params, "sam"))
    with pytest.raises(ValueError, match="LightningSAM does not fit SingleDeviceStrategy, whose"):
        run.fit(module, loader())


def test_without_the_callback_accumulation_is_refused(tmp_path: Path) -> None:
    module = Module(lambda params: make_sam(params, "sam"))
    with pytest.raises(RuntimeError, match="the closure added to gradients that were there before"):
        trainer(tmp_path, accumulate_grad_batches=2).fit(module, loader())


def test_diagnostics_are_logged(tmp_path: Path) -> None:
    module = Module(lambda params: steppe.DualAdam(params, total_steps=5))
    run = trainer(tmp_path, LightningDiagnostics(every=2))
    run.fit(module, loader())
    assert run.callback_metrics["optimizer/alpha"] == 0
    assert run.callback_metrics["optimizer/steps_to_switch"] == 0
    for wrong in (0, 2.5, True):
        with pytest.raises(ValueError, match=r"every=.* is not valid: expected an integer ≥ 1"):
            LightningDiagnostics(every=wrong)


def test_curvature_is_logged_resumed_and_changes_nothing(tmp_path: Path) -> None:
    x, y = data()

    def make(module: Any, optimizer: Any) -> Monitor:
        return Monitor(module.net, F.cross_entropy, [(x, y)], optimizer, every=2)

    def fitted(watch: bool, epochs: int, resume: Path | None = None) -> tuple[Any, ...]:
        module = Module(lambda params: make_sam(params, "sam"))
        watcher = LightningDiagnostics(every=2, monitor=make if watch else None)
        run = trainer(
            tmp_path, LightningSAM(), watcher, max_epochs=epochs, accumulate_grad_batches=2
        )
        run.fit(module, loader(), ckpt_path=resume, weights_only=False)
        return module, watcher, run

    plain_module, _, _ = fitted(False, 2)
    module, watcher, run = fitted(True, 2)
    assert all(map(torch.equal, plain_module.parameters(), module.parameters()))
    assert [row.step for row in watcher._monitor.history] == [2, 4, 6]
    assert run.callback_metrics["monitor/lambda_max"] > 0
    assert run.callback_metrics["optimizer/ascents"] == 6
    _, _, half = fitted(True, 1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, again, _ = fitted(True, 2, tmp_path / "half.ckpt")
    found, truth = ([row.values for row in w._monitor.history] for w in (again, watcher))
    assert len(found) == 3
    assert found[-1]["lambda_max"] == truth[-1]["lambda_max"]


class Skipping(Module):
    """Skips batches, as Lightning allows by returning None."""

    skipped: tuple[int, ...] = ()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx in self.skipped:
            return None
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("skipped", [(1,), (0,), (0, 1), (1, 3), (4,), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("kind", ["sam", "msam"])
def test_a_batch_that_is_skipped_is_left_out(
    skipped: tuple[int, ...], kind: str, tmp_path: Path
) -> None:
    module = Skipping(lambda params: make_sam(params, kind))
    module.skipped = skipped
    trainer(tmp_path, LightningSAM(), accumulate_grad_batches=2).fit(module, loader())
    model = network()
    sam = make_sam(model.parameters(), kind)
    numbered = list(enumerate(loader()))
    for window in (numbered[0:2], numbered[2:4], numbered[4:]):
        kept = [batch for number, batch in window if number not in skipped]
        if not kept:
            # Lightning steps without gradients; with those of the window before, if none was first.
            continue

        def run(kept: Any = kept) -> None:
            for batch in kept:
                (loss_of(model, batch) / 2).backward()

        sam.zero_grad()
        if sam.has_two_passes:
            run()
        with sam.perturbed():
            run()
        sam.step()
    same(module.net, model)


class TakesOut(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        labels = batch.pop()
        return F.cross_entropy(self.net(batch[0]), labels)


class ChangesInPlace(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.net(batch[0].mul_(2)), batch[1])


def test_what_the_first_pass_does_to_a_batch_is_not_done_twice(tmp_path: Path) -> None:
    module = TakesOut(lambda params: make_sam(params, "sam"))
    trainer(tmp_path, LightningSAM(), accumulate_grad_batches=2).fit(module, loader())
    model, _ = plain("sam", accumulate=2)
    same(module.net, model)
    changing = ChangesInPlace(lambda params: make_sam(params, "sam"))
    with pytest.raises(RuntimeError, match="changed a batch in place"):
        trainer(tmp_path, LightningSAM()).fit(changing, loader())


def test_one_pass_takes_a_step_without_an_index(tmp_path: Path) -> None:
    module = WithoutIndex(lambda params: make_sam(params, "msam"))
    trainer(tmp_path, LightningSAM()).fit(module, loader())
    model, _ = plain("msam")
    same(module.net, model)


def test_a_module_that_is_fitted_once_more_has_one_history(tmp_path: Path) -> None:
    x, y = data()
    watcher = LightningDiagnostics(
        monitor=lambda module, optimizer: Monitor(
            module.net, F.cross_entropy, [(x, y)], optimizer, every=2
        )
    )
    module = Module(lambda params: make_sam(params, "sam"))
    run = trainer(tmp_path, LightningSAM(), watcher)
    run.fit(module, loader())
    run.fit_loop.max_epochs = 2
    run.fit(module, loader())
    assert [row.step for row in watcher._monitor.history] == [2, 4, 6, 8, 10]


@pytest.mark.parametrize("every", [None, 2, 3])
def test_loggers_get_every_row(every: int | None, tmp_path: Path) -> None:
    """Lightning itself passes on what is logged at every fourth step, and drops the rest."""
    from lightning.pytorch.loggers import CSVLogger

    x, y = data()
    watcher = LightningDiagnostics(
        every,
        monitor=lambda module, optimizer: Monitor(
            module.net, F.cross_entropy, [(x, y)], optimizer, every=3
        ),
    )
    module = Module(lambda params: make_sam(params, "sam"))
    run = trainer(
        tmp_path, LightningSAM(), watcher, max_epochs=2, log_every_n_steps=4,
        logger=CSVLogger(tmp_path),
    )  # fmt: skip
    run.fit(module, loader())
    with Path(run.logger.experiment.metrics_file_path).open() as file:
        rows = list(csv.DictReader(file))
    measured = {int(row["step"]): row for row in rows if row.get("monitor/lambda_max")}
    assert sorted(measured) == [2, 5, 8]
    for row, (_, found) in zip(watcher._monitor.history, sorted(measured.items()), strict=True):
        assert float(found["monitor/lambda_max"]) == pytest.approx(row.values["lambda_max"])
    steps = [int(row["step"]) for row in rows if row.get("optimizer/ascents")]
    assert sorted(steps) == list(range((every or 4) - 1, 10, every or 4))


class ClearsToZero(Skipping):
    skipped = (2, 3)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=False)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_may_be_skipped_however_gradients_are_cleared(
    accumulate: int, tmp_path: Path
) -> None:
    module = ClearsToZero(lambda params: make_sam(params, "sam"))
    run = trainer(tmp_path, LightningSAM(), accumulate_grad_batches=accumulate)
    run.fit(module, loader())
    assert run.optimizers[0].diagnostics()["ascents"] == (3 if accumulate == 1 else 2)


def test_a_module_that_is_thawed_gets_a_new_monitor(tmp_path: Path) -> None:
    x, y = data()
    watcher = LightningDiagnostics(
        monitor=lambda module, optimizer: Monitor(
            module.net, F.cross_entropy, [(x, y)], optimizer, every=2
        )
    )
    module = Module(lambda params: make_sam([p for p in params if p.requires_grad], "sam"))
    module.net[0].requires_grad_(False)
    trainer(tmp_path, LightningSAM(), watcher).fit(module, loader())
    module.net[0].requires_grad_(True)
    trainer(tmp_path, LightningSAM(), watcher).fit(module, loader())
    assert [row.step for row in watcher._monitor.history] == [2, 4]
