"""The tasks that come with steppe: for each its data, models, loss, score and sizes.

A name means a function that makes the task, for a model and an amount of data: one like those that
users write in files of their own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from steppe.compare.data import (
    datasets,
    finetuning,
    image_streams,
    images,
    mnist_streams,
    streams,
    text,
)
from steppe.compare.data.datasets import Data
from steppe.compare.metrics.curvature import DEFAULT_CURVATURE, CurvatureSettings
from steppe.compare.metrics.scores import ACCURACY, PERPLEXITY, Loss, Metric, token_loss
from steppe.compare.models.image_models import find_model
from steppe.compare.models.language_models import find_language_model
from steppe.compare.models.pretrained import SMOLLM2, load_causal_model
from steppe.compare.records.choices import Scale
from steppe.compare.tasks.task import Task


@dataclass(frozen=True)
class Size:
    """How much is trained.

    Attributes
    ----------
    model : str
        One of :data:`steppe.compare.models.image_models.MODELS`.
    epochs, batch_size : int
        Length of training, and samples of a batch; at full size enough to converge.
    samples : int or None, default None
        Training samples, None for all; of a stream, in each task.
    length : int or None, default None
        Tokens of a sequence, where samples are text.
    """

    model: str
    epochs: int
    batch_size: int
    samples: int | None = None
    length: int | None = None


@dataclass(frozen=True)
class TaskMaker:
    """A function that makes a task of a scale, with the model and the samples that are asked for.

    Attributes
    ----------
    name : str
        What the command line calls it.
    read : callable
        Returns the data. Called with a directory if ``reads_files`` and the user names one, with
        ``length`` if samples are text, with ``model`` if the model brings the tokenizer.
    make : callable
        ``make(name)``, a new model of that name, its weights from torch's global generator. It
        raises a ValueError if there is none, or it cannot take the task's samples.
    full, small : Size
        The size of published runs, and one that takes minutes on a CPU.
    loss : callable, default cross-entropy
        ``loss(outputs, targets)``, the mean over the batch.
    metrics : tuple of (str, Metric), default accuracy
        How outputs are scored; the first is the score.
    subsample : callable, default :func:`steppe.compare.data.datasets.subsample`
        ``subsample(data, samples)``, the data with so many training samples.
    curvature : CurvatureSettings, default ``DEFAULT_CURVATURE``
        What curvature is measured on, and how exactly.
    threads : int or None, default None
        CPU threads by default; None leaves torch's own choice. Tiny models are fastest on 1.
    reads_files : bool, default False
        Whether the data is in files, in a directory that the user can choose.
    loaders : int, default 0
        Processes that prepare batches, so that an accelerator need not wait for them.
    tokenizes : bool, default False
        Whether the model brings the tokenizer that the data is read with.
    packages : tuple of str, default empty
        Packages whose versions the results depend on, besides torch.
    domain_incremental : bool, default False
        Whether the tasks of a stream share the network's outputs, so that the task of a sample
        is not known.
    """

    name: str
    read: Callable[..., Data]
    make: Callable[[str], nn.Module]
    full: Size
    small: Size
    loss: Loss = F.cross_entropy
    metrics: tuple[tuple[str, Metric], ...] = (("accuracy", ACCURACY),)
    subsample: Callable[[Data, int], Data] = datasets.subsample
    curvature: CurvatureSettings = DEFAULT_CURVATURE
    threads: int | None = None
    reads_files: bool = False
    loaders: int = 0
    tokenizes: bool = False
    packages: tuple[str, ...] = ()
    domain_incremental: bool = False

    def __call__(
        self,
        *,
        scale: Scale = "full",
        model: str | None = None,
        samples: int | None = None,
        length: int | None = None,
        data: Path | None = None,
    ) -> Task:
        """Make the task.

        Parameters
        ----------
        scale : "full" or "small", default "full"
            What is not given is that of this size.
        model : str, optional
            The model.
        samples : int, optional
            Train on only so many, always the same ones, a larger choice containing every smaller
            one.
        length : int, optional
            Tokens of a sequence.
        data : Path, optional
            Directory of the task's files.

        Raises
        ------
        ValueError
            If a directory is given to a task that reads no files, or a length to one without
            sequences.
        """
        size = self.small if scale == "small" else self.full
        if data is not None and not self.reads_files:
            raise ValueError(f"{self.name} comes inside a Python package: --data is not for it")
        if length is not None and size.length is None:
            raise ValueError(f"{self.name} has no sequences of tokens: --seq-length is not for it")
        name = model or size.model
        count = size.samples if samples is None else samples
        given: dict[str, Any] = {}
        if size.length is not None:
            given["length"] = length or size.length
        if self.tokenizes:
            given["model"] = name

        @cache
        def read() -> Data:
            found = self.read(*([] if data is None else [data]), **given)
            return found if count is None else self.subsample(found, count)

        return Task(
            name=self.name,
            model=partial(self.make, name),
            data=read,
            loss=self.loss,
            metrics=dict(self.metrics),
            epochs=size.epochs,
            batch_size=size.batch_size,
            curvature=self.curvature,
            loaders=self.loaders,
            threads=self.threads,
            packages=self.packages,
            model_name=name,
            options={"samples": count, "length": given.get("length")},
            domain_incremental=self.domain_incremental,
            subsample=self.subsample,
        )


def _image_model(channels: int, side: int, classes: int) -> Callable[[str], nn.Module]:
    def make(name: str) -> nn.Module:
        model = find_model(name)((channels, side, side), classes)
        # Halves the time of small convolutions on CPUs, and feeds tensor cores on GPUs.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    return make


# Tasks of colour images of CIFAR's size.
_colour_image_task = partial(
    TaskMaker,
    full=Size("resnet18", epochs=200, batch_size=128),
    small=Size("small-cnn", epochs=10, batch_size=64, samples=5_000),
    reads_files=True,
    loaders=4,
)


def _stream(name: str, read: Callable[..., Data], *, classes: int, **rest: Any) -> TaskMaker:
    metric = Metric(partial(streams.hits, classes=classes), unit="%", factor=100.0)
    return TaskMaker(
        name,
        read,
        loss=partial(streams.stream_loss, classes=classes),
        metrics=(("average accuracy", metric),),
        subsample=streams.subsample,
        **rest,
    )


# Streams whose tasks all have the ten digits, and share ten outputs.
_domain_incremental_digits = partial(
    _stream,
    classes=mnist_streams.DIGITS,
    make=_image_model(1, 28, mnist_streams.DIGITS),
    full=Size("mlp", epochs=10, batch_size=10),
    small=Size("mlp", epochs=10, batch_size=10, samples=500),
    threads=1,
    domain_incremental=True,
)


# A Hessian-vector product of a dozen sequences takes as long as a dozen steps.
_CURVATURE_OF_TEXT = CurvatureSettings(samples=12, often=False)


def _language_model(vocabulary: int) -> Callable[[str], nn.Module]:
    return lambda name: find_language_model(name, vocabulary)


_language_task = partial(
    TaskMaker,
    full=Size("lstm-200", epochs=20, batch_size=20, length=35),
    small=Size("small-lstm", epochs=3, batch_size=8, samples=800, length=32),
    loss=token_loss,
    metrics=(("perplexity", PERPLEXITY),),
    subsample=text.subsample,
    curvature=_CURVATURE_OF_TEXT,
)


_ALL = (
    TaskMaker(
        "digits",
        datasets.digits,
        make=_image_model(1, 8, 10),
        full=Size("mlp", epochs=50, batch_size=32),
        small=Size("mlp", epochs=50, batch_size=32),
        threads=1,
    ),
    TaskMaker(
        "mnist-5k",
        datasets.mnist_5k,
        make=_image_model(1, 28, 10),
        full=Size("small-cnn", epochs=15, batch_size=64),
        small=Size("small-cnn", epochs=8, batch_size=64),
    ),
    TaskMaker(
        "fashion-mnist",
        datasets.fashion_mnist,
        make=_image_model(1, 28, 10),
        full=Size("small-cnn", epochs=20, batch_size=128),
        small=Size("small-cnn", epochs=4, batch_size=64, samples=5_000),
        reads_files=True,
    ),
    _colour_image_task("cifar10", images.cifar10, make=_image_model(3, 32, 10)),
    _colour_image_task("cifar100", images.cifar100, make=_image_model(3, 32, 100)),
    _colour_image_task("tiny-imagenet", images.tiny_imagenet, make=_image_model(3, 64, 200)),
    TaskMaker(
        "imagenet",
        images.imagenet,
        make=_image_model(3, 224, 1000),
        full=Size("resnet50", epochs=90, batch_size=256),
        small=Size("resnet18", epochs=1, batch_size=64, samples=5_000),
        reads_files=True,
        loaders=8,
    ),
    _language_task("shakespeare", text.shakespeare, make=_language_model(text.SHAKESPEARE_WORDS)),
    _language_task(
        "sonnets",
        text.sonnets,
        make=_language_model(text.SHAKESPEARE_WORDS),
        small=Size("small-lstm", epochs=10, batch_size=8, length=32),
    ),
    _language_task("ptb", text.ptb, make=_language_model(text.PTB_WORDS), reads_files=True),
    _language_task(
        "wikitext2", text.wikitext2, make=_language_model(text.WIKITEXT2_WORDS), reads_files=True
    ),
    _language_task(
        "finetune",
        finetuning.finetuning,
        make=load_causal_model,
        subsample=text.subsample_scattered,
        full=Size(SMOLLM2, epochs=3, batch_size=16, length=512),
        small=Size(f"{SMOLLM2}+lora", epochs=3, batch_size=4, samples=32, length=64),
        curvature=CurvatureSettings(samples=2, tol=0.05, max_products=30, often=False, full=False),
        reads_files=True,
        tokenizes=True,
        packages=("transformers", "peft", "tokenizers"),
    ),
    _stream(
        "split-mnist",
        mnist_streams.split_mnist,
        classes=mnist_streams.SPLIT_CLASSES,
        make=_image_model(1, 28, 10),
        full=Size("mlp", epochs=5, batch_size=10),
        small=Size("mlp", epochs=5, batch_size=10),
        threads=1,
    ),
    _domain_incremental_digits("permuted-mnist", mnist_streams.permuted_mnist),
    _domain_incremental_digits("rotated-mnist", mnist_streams.rotated_mnist),
    _stream(
        "5-dataset",
        image_streams.five_dataset,
        classes=image_streams.FIVE_CLASSES,
        make=_image_model(3, 32, 50),
        reads_files=True,
        full=Size("resnet18", epochs=5, batch_size=10),
        small=Size("small-cnn", epochs=5, batch_size=16, samples=1_000),
    ),
    _stream(
        "tiny-imagenet-stream",
        image_streams.tiny_imagenet_stream,
        classes=image_streams.TINY_CLASSES,
        make=_image_model(3, 64, 200),
        reads_files=True,
        full=Size("resnet18", epochs=40, batch_size=10),
        small=Size("small-cnn", epochs=40, batch_size=10, samples=200),
    ),
)

#: The functions that make them, by their names.
TASKS: Mapping[str, TaskMaker] = {each.name: each for each in _ALL}
