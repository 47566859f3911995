"""The tasks as a whole: sizes, models and data that fit each other."""

import re
from pathlib import Path

import pytest
import torch

from helpers.torchvision_shim import torchvision  # noqa: F401
from helpers.warm_python import run
from steppe.compare.data.datasets import Data, TensorSamples
from steppe.compare.models.image_models import find_model
from steppe.compare.tasks.makers import TASKS, Size, TaskMaker
from steppe.compare.tasks.source import find_task


def test_the_tasks_are_those_promised() -> None:
    assert list(TASKS) == [
        "digits",
        "mnist-5k",
        "fashion-mnist",
        "cifar10",
        "cifar100",
        "tiny-imagenet",
        "imagenet",
        "shakespeare",
        "sonnets",
        "ptb",
        "wikitext2",
        "finetune",
        "split-mnist",
        "permuted-mnist",
        "rotated-mnist",
        "5-dataset",
        "tiny-imagenet-stream",
    ]
    assert TASKS["cifar100"].full == Size("resnet18", epochs=200, batch_size=128)
    assert TASKS["imagenet"].small == Size("resnet18", epochs=1, batch_size=64, samples=5_000)


IMAGES = {
    "digits": ((1, 8, 8), 10),
    "mnist-5k": ((1, 28, 28), 10),
    "fashion-mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "tiny-imagenet": ((3, 64, 64), 200),
    "imagenet": ((3, 224, 224), 1000),
}


@pytest.mark.parametrize(("name", "shape", "classes"), [(k, *v) for k, v in IMAGES.items()])
def test_the_models_of_both_sizes_take_the_tasks_images(
    name: str, shape: tuple[int, ...], classes: int
) -> None:
    maker = TASKS[name]
    for scale, size in (("full", maker.full), ("small", maker.small)):
        with torch.device("meta"):
            model = find_task(name).task({"scale": scale}).model()
            outputs = model(torch.empty(2, *shape))
        assert outputs.shape == (2, classes)
        assert size.samples is None or size.samples >= 2 * size.batch_size


@pytest.mark.parametrize("name", ["digits", "mnist-5k"])
def test_the_data_has_the_shape_and_the_classes_that_the_task_says(name: str) -> None:
    data = find_task(name).task().load().data
    for part in (data.train, data.unaugmented, data.validation, data.test):
        assert part[0][0].shape == IMAGES[name][0]
        assert part.targets.unique().tolist() == list(range(IMAGES[name][1]))


def test_a_new_model_is_about_as_good_as_guessing_among_ten() -> None:
    task, data = find_task("digits").task().load()
    torch.manual_seed(0)
    loss = task.loss(task.model()(data.test.inputs), data.test.targets)
    assert loss.item() == pytest.approx(2.3, abs=0.3)


def test_a_tasks_model_is_the_one_of_that_name_and_seed() -> None:
    torch.manual_seed(3)
    found = find_task("digits").task({"model": "small-cnn"}).model().state_dict()
    torch.manual_seed(3)
    expected = find_model("small-cnn")((1, 8, 8), 10).state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    with pytest.raises(ValueError, match="did you mean small-cnn"):
        find_task("digits").task({"model": "smallcnn"}).model()


def toy_data() -> Data:
    samples = TensorSamples(torch.randn(20, 1, 2, 2), torch.arange(20) % 2)
    return Data(samples, samples.take(torch.arange(8)), samples, fingerprint="toy")


def test_a_maker_makes_tasks_of_a_scale_with_what_is_asked_for() -> None:
    full, small = Size("mlp", 9, 5), Size("small-vit", 1, 4, samples=12)
    toy = TaskMaker("toy", toy_data, lambda name: find_model(name)((1, 8, 8), 2), full, small)
    task, data = toy(samples=6).load()
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 3, 20)
    assert (task.name, task.model_name, task.epochs, task.batch_size) == ("toy", "mlp", 9, 5)
    assert task.options["samples"] == 6
    assert task.score.name == "accuracy"
    assert len(toy().load().data.train) == 20
    assert toy().options["samples"] is None
    little = toy(scale="small", model="small-cnn")
    assert (little.model_name, little.epochs, little.batch_size) == ("small-cnn", 1, 4)
    assert little.options["samples"] == len(little.load().data.train) == 12
    for each, name in ((task, "mlp"), (little, "small-cnn"), (toy(scale="small"), "small-vit")):
        expected = find_model(name)((1, 8, 8), 2).state_dict()
        assert {key: value.shape for key, value in each.model().state_dict().items()} == {
            key: value.shape for key, value in expected.items()
        }
    with pytest.raises(ValueError, match="between 2 and the 20"):
        toy(samples=21).load()


def test_samples_are_read_when_they_are_loaded_and_once() -> None:
    read: list[int] = []

    def noted() -> Data:
        read.append(0)
        return toy_data()

    size = Size("mlp", 1, 5)
    toy = TaskMaker("toy", noted, lambda name: find_model(name)((1, 2, 2), 2), size, size)
    task = toy()
    assert read == []
    assert task.load().data is task.load().data
    assert len(read) == 1


def test_a_length_is_for_texts_alone() -> None:
    with pytest.raises(ValueError, match="digits has no sequences of tokens: --seq-length is not"):
        find_task("digits").task({"length": 8})
    assert find_task("shakespeare").task().options["length"] == 35
    assert find_task("shakespeare").task({"length": 8}).options["length"] == 8
    small = find_task("shakespeare").task({"scale": "small"})
    assert small.options == {"samples": 800, "length": 32}


def test_an_unknown_task_gets_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean fashion-mnist"):
        find_task("fashion_mnist")


def test_a_task_without_files_takes_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--data is not for it"):
        find_task("digits").task({"data": tmp_path})


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.reads_files])
def test_a_task_with_files_reads_them_from_the_directory(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        find_task(name).task({"data": tmp_path}).load()


@pytest.mark.thorough
def test_the_tasks_need_torchvision_and_timm_only_when_used(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules.update(torchvision=None, timm=None, PIL=None)\n"
        "from steppe.compare.tasks.makers import TASKS\n"
        "make = TASKS['digits']\n"
        "assert len(make().load().data.train) == 1006\n"
        "for name in ('mlp', 'small-cnn', 'small-vit', 'vit'): make(model=name).model()\n"
    )
    (tmp_path / "script.py").write_text(code)
    run(tmp_path / "script.py")


ROOT = Path(__file__).parents[3]
DETAILS = ROOT / "docs" / "comparisons.md"


def rows_of(page: Path) -> list[list[str]]:
    """Return the cells of the rows of a page's tables whose first cell names tasks."""
    lines = page.read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return [row for row in rows if set(re.findall("`([^`]+)`", row[0])) & TASKS.keys()]


@pytest.mark.parametrize("page", [ROOT / "README.md", DETAILS], ids=lambda page: page.name)
def test_the_pages_name_every_task_once_and_say_which_read_files(page: Path) -> None:
    named: list[str] = []
    for row in rows_of(page):
        names = re.findall("`([^`]+)`", row[0])
        named += names
        brings = " ".join(row[1:])
        for name in names:
            needs_files = TASKS[name].reads_files and name not in WITH_FILES_OF_PACKAGES
            assert not needs_files or "--data DIR" in brings or "as `" in brings, name
    assert sorted(named) == sorted(TASKS)


WITH_FILES_OF_PACKAGES = {"fashion-mnist"}
MODELS_IN_WORDS = {
    "mlp": "MLP",
    "small-cnn": "small CNN",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "small-lstm": "LSTM 1 × 128",
    "lstm-200": "LSTM 2 × 200",
    "smollm2": "SmolLM2-135M, all weights",
    "smollm2+lora": "LoRA",
}


def test_the_table_of_tasks_gives_their_sizes() -> None:
    for row in rows_of(DETAILS):
        for name in re.findall("`([^`]+)`", row[0]):
            task = TASKS[name]
            for size, said in ((task.full, row[2]), (task.small, row[3])):
                if said.startswith(("the same", "as `")):
                    continue
                if size.model != task.full.model or size is task.full:
                    assert MODELS_IN_WORDS[size.model] in said, name
                if "epoch" in said:
                    assert f"{size.epochs} epoch" in said, name
                counts = {int(found.replace(" ", "")) for found in re.findall(r"\d[\d ]*", said)}
                wanted = (size.samples or 0) * (size.length or 1)
                assert not wanted or wanted in counts, name
