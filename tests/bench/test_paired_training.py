"""benchmarks/paired_training.py: who is trained with whom, what is kept, and the table of it."""

import json
import math
import statistics
from pathlib import Path

import cyclopts
import finetune_24_bits
import paired_training
import pytest
import torch
import weights_24_bits
from paired_training import Case, Tasks, differences_table, paired_command, steps_of

SGD = Case(torch.float32, lambda params, steps: torch.optim.SGD(params, lr=0.5))
PAGE = "<!-- benchmarks/toy.py -->\n<!-- end -->\n"


@pytest.fixture
def docs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(paired_training, "DOCS", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "page.md").write_text(PAGE)
    return tmp_path


def test_what_is_done_is_not_done_again(docs: Path) -> None:
    done: list[tuple[int, torch.dtype]] = []

    def train(seed: int, case: Case) -> float:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append((seed, case.dtype))
        return 1.5 * seed if case.dtype is torch.float64 else float(seed)

    cases = {"one": SGD, "other": SGD._replace(dtype=torch.float64)}
    run = paired_command("toy", "page.md", cases, Tasks({"toy": lambda: train}, digits=3))
    with pytest.raises(KeyboardInterrupt):
        run(seeds=4)
    assert (docs / "page.md").read_text() == PAGE
    first = [*done]
    done.clear()
    run(seeds=4)
    # Each seed once with each case.
    both = sorted(first + done, key=str)
    assert both == sorted(
        ((seed, dtype) for seed in range(4) for dtype in (torch.float32, torch.float64)), key=str
    )
    found = json.loads((docs / "results" / "toy.json").read_text())
    assert found["torch"] == torch.__version__
    assert found["runs"]["toy"]["3"] == {"one": 3.0, "other": 4.5}
    assert "| toy | 4 | 1.500 | +0.750 [−0.277, +1.777] |" in (docs / "page.md").read_text()


def test_the_interval_is_that_of_paired_differences() -> None:
    ones, others = [90.0, 91.0, 95.0], [90.5, 91.9, 95.1]
    runs = {
        "digits": {
            str(seed): {"one": a, "other": b}
            for seed, (a, b) in enumerate(zip(ones, others, strict=True))
        }
    }
    runs["digits"]["3"] = {"one": 1.0}  # whose pair has not ended
    differences = [b - a for a, b in zip(ones, others, strict=True)]
    half = 4.302652729911275 * statistics.stdev(differences) / math.sqrt(3)  # t of two degrees
    low, high = 0.5 - half, 0.5 + half
    expected = f"| digits | 3 | 92.00 | +0.50 [{low:+.2f}, {high:+.2f}] |".replace("-", "−")
    assert differences_table(runs, ["one", "other"]).splitlines()[-1] == expected


def test_one_seed_and_unknown_tasks_are_refused(docs: Path, capsys) -> None:
    run = cyclopts.App(result_action="return_value")
    run.default(paired_command("toy", "page.md", {"one": SGD}))
    for words, message in (
        (["--seeds", "1"], "seeds=1 is not valid: expected at least 2"),
        (["--task", "digit"], "digits"),
    ):
        with pytest.raises(SystemExit):
            run(words)
        assert message in capsys.readouterr().err


def test_each_epoch_has_all_rows_in_the_seeds_order_and_the_lr_falls() -> None:
    p = torch.nn.Parameter(torch.zeros(()))
    rates: list[float] = []

    def visited(seed: int) -> list[int]:
        rates.clear()
        optimizer = torch.optim.SGD([p], lr=1.0)
        rows: list[int] = []
        for batch in steps_of(optimizer, 10, 2, 4, seed):
            rows += batch.tolist()
            rates.append(optimizer.param_groups[0]["lr"])
            p.grad = torch.ones(())
        return rows

    first = visited(0)
    assert sorted(first[:10]) == sorted(first[10:]) == list(range(10))
    assert first == visited(0) != visited(1)
    assert rates == pytest.approx([(1 + math.cos(math.pi * t / 6)) / 2 for t in range(6)])
    assert p.item() == pytest.approx(-3 * sum(rates))


class Language(torch.nn.Module):
    """Logits of the next of five tokens, beside a table that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(5, 8).requires_grad_(False)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(tokens))


@pytest.mark.parametrize("name", weights_24_bits.CASES)
def test_fine_tuning_in_few_bits_computes_in_float32(name: str) -> None:
    from steppe.compare import Data, LoadedTask, Task, TensorSamples

    tokens = torch.arange(40).reshape(8, 5) % 5
    samples = TensorSamples(tokens, (tokens + 1) % 5)
    seen: list[torch.dtype] = []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(outputs.dtype)
        return torch.nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    task = Task(
        name="toy",
        model=Language,
        train=samples,
        validation=0.5,
        test=samples,
        loss=loss,
        epochs=30,
    )
    loaded = LoadedTask(task, Data(samples, samples, samples))
    found = finetune_24_bits._train(loaded, 0.1, 0, weights_24_bits.CASES[name])
    assert found < 0.2 < math.log(5)
    assert set(seen) == {torch.float32}
