"""What happens to a trained model: its weights are rounded or disturbed, or its inputs corrupted.

Each perturbation is seeded by its name, so that two models meet the same noise and corruptions.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from steppe._shared.interrupts import uninterrupted
from steppe._shared.validation import check_positive, checked_seed
from steppe.landscape.perturbations.corruptions import (
    IMAGE_CORRUPTIONS,
    SEVERITIES,
    TOKEN_CORRUPTIONS,
    corrupt_images,
    corrupt_tokens,
)
from steppe.landscape.perturbations.error_compensation import compensated, layers_in_order
from steppe.landscape.perturbations.inputs import (
    input_tensors,
    is_images,
    is_tokens,
    mask_tensors,
    with_tensors,
)
from steppe.landscape.perturbations.reference import Reference
from steppe.landscape.perturbations.rounding import Scales, round_weight
from steppe.landscape.perturbations.weights import memory_of, weights_of

#: Bits, from mild to hard.
_BITS = (4, 3, 2)
_NOISES = (0.1, 0.3, 0.5)
_MEASURED_SEVERITIES = (1, 3, 5)


@dataclass(frozen=True)
class Rounding:
    """All weights of two or more dimensions are rounded to a few bits, channel by channel.

    Attributes
    ----------
    bits : int
        2 to 8: 2ᵇ − 1 levels, symmetric about 0.
    scales : "absmax", "least error" or "compensated"
        The scale of a channel: its largest weight's, or that of least squared error. "compensated"
        takes the latter, and rounds linear layers as GPTQ does, each weight's error compensated in
        those not rounded yet.
    group : int, optional
        Weights of a channel that share a scale, as 128 in many language models of 4 bits; the last
        group of a channel may be smaller. Default: all of them.
    """

    bits: int
    scales: Literal["absmax", "least error", "compensated"] = "least error"
    group: int | None = None

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 2 <= self.bits <= 8:
            raise ValueError(f"bits={self.bits!r} must be a whole number from 2 to 8")
        if self.scales not in ("absmax", "least error", "compensated"):
            raise ValueError(
                f"scales={self.scales!r} is not one of 'absmax', 'least error', 'compensated'"
            )
        if self.group is not None and (type(self.group) is not int or self.group < 1):
            raise ValueError(
                f"group={self.group!r} must be a whole number of at least 1, or None for channels"
            )

    @property
    def name(self) -> str:
        """Such as "3 bits absmax"; "3 bits absmax in groups of 128"."""
        groups = "" if self.group is None else f" in groups of {self.group}"
        return f"{self.bits} bits {self.scales}{groups}"

    @property
    def draws(self) -> int:
        """Nothing is drawn."""
        return 1

    def change(self, model: nn.Module, generator: Generator, run: Callable[[], None]) -> None:
        """Round a model's weights in place."""
        nearest: Scales = "absmax" if self.scales == "absmax" else "least error"
        layers = layers_in_order(model, run) if self.scales == "compensated" else []
        apart = {memory_of(layer.weight) for layer in layers}
        for module, weight in weights_of(model):
            if memory_of(weight) not in apart:
                round_weight(module, weight, self.bits, nearest, self.group)
        # In the order of calls: each on the inputs that it has once those before it are rounded.
        for layer in layers:
            layer.weight.copy_(compensated(layer, self.bits, self.group, run))


@dataclass(frozen=True)
class WeightNoise:
    """Gaussian noise is added to all weights of two or more dimensions.

    Attributes
    ----------
    share : float
        Standard deviation of the noise, as a share of that of each tensor's own weights.
    draws : int, default 4
        Results are means over so many draws.
    """

    share: float
    draws: int = 4

    def __post_init__(self) -> None:
        check_positive(share=self.share)
        if type(self.draws) is not int or self.draws < 1:
            raise ValueError(f"draws={self.draws!r} must be a whole number of at least 1")

    @property
    def name(self) -> str:
        """Such as "weight noise 0.3"."""
        return f"weight noise {self.share:g}"

    def change(self, model: nn.Module, generator: Generator, run: Callable[[], None]) -> None:
        """Add noise to a model's weights in place."""
        for _, weight in weights_of(model):
            spread = weight.detach().double().std(correction=0)
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
            weight.add_((self.share * spread * drawn.to(spread)).to(weight.dtype))


@dataclass(frozen=True)
class Corruption:
    """Images or texts are corrupted.

    Attributes
    ----------
    kind : str
        "noise", "blur", "shift", "contrast" or "brightness" of images; "dropout" or "swaps" of
        tokens. See :func:`~steppe.landscape.perturbations.corruptions.corrupt_images` and
        :func:`~steppe.landscape.perturbations.corruptions.corrupt_tokens`.
    severity : int
        1 to 5.
    draws : int, default 1
        Results are means over so many draws.
    """

    kind: str
    severity: int
    draws: int = 1

    def __post_init__(self) -> None:
        known = {**IMAGE_CORRUPTIONS, **TOKEN_CORRUPTIONS}
        if not isinstance(self.kind, str) or self.kind not in known:
            raise ValueError(f"kind={self.kind!r} is not one of {', '.join(known)}")
        if type(self.severity) is not int or self.severity not in SEVERITIES:
            raise ValueError(f"severity={self.severity!r} must be a whole number from 1 to 5")
        if type(self.draws) is not int or self.draws < 1:
            raise ValueError(f"draws={self.draws!r} must be a whole number of at least 1")

    @property
    def name(self) -> str:
        """Such as "blur 3"."""
        return f"{self.kind} {self.severity}"

    def corrupted(self, inputs: Any, reference: Reference, generator: Generator) -> Any:
        """Return a batch's inputs, corrupted, whatever images or tokens are nested in.

        Labels and masks stay as they are, and so do padded tokens; which these are says
        ``reference``. With one generator for all batches, a sample meets the same noise however
        samples are batched.

        Parameters
        ----------
        inputs
            Of a batch.
        reference : Reference
            Of all inputs, see :func:`~steppe.landscape.perturbations.reference.reference_of`.
        generator : Generator
            On the CPU.

        Raises
        ------
        ValueError
            There are no images, or no tokens, in them.
        """
        own = input_tensors(inputs)
        of_images = self.kind in IMAGE_CORRUPTIONS
        places = reference.images if of_images else reference.tokens
        found = {place: tensor for place, tensor in own.items() if place in places}
        if not found:
            expected = "tokens, (samples, tokens) of whole numbers"
            if of_images:
                expected = "images, (samples, channels, height, width) of floating point"
            raise ValueError(f"{self.name!r} needs inputs that are {expected}")

        def corrupt(place: str, tensor: Tensor, beside: Mapping[str, Tensor]) -> Tensor:
            if of_images:
                scale = reference.images[place]
                return corrupt_images(tensor, self.kind, self.severity, scale, generator)
            real, pool = reference.real_tokens(place, beside), reference.tokens[place]
            return corrupt_tokens(tensor, self.kind, self.severity, generator, real, pool)

        own |= mask_tensors(inputs)
        if len(found) == 1:
            return with_tensors(inputs, {p: corrupt(p, tensor, own) for p, tensor in found.items()})
        # Sample by sample, as one draws after the other.
        parts: dict[str, list[Tensor]] = {place: [] for place in found}
        for row in range(max(map(len, found.values()))):
            rows = {p: tensor[row : row + 1] for p, tensor in own.items() if row < len(tensor)}
            for place in (each for each in found if each in rows):
                parts[place].append(corrupt(place, rows[place], rows))
        return with_tensors(inputs, {place: torch.cat(each) for place, each in parts.items()})


#: All kinds.
Perturbation = Rounding | WeightNoise | Corruption


def checked_perturbations(given: Any) -> tuple[Perturbation, ...] | None:
    """Return perturbations as a tuple, and None as None.

    Raises
    ------
    TypeError
        It is no iterable, or something else is in it.
    """
    if given is None:
        return None
    if not isinstance(given, Iterable) or isinstance(given, str):
        raise TypeError(f"perturbations must be a list of perturbations, got {given!r}")
    found = tuple(given)
    for each in found:
        if not isinstance(each, Perturbation):
            raise TypeError(
                f"perturbations has {each!r}: expected Rounding, WeightNoise or Corruption"
            )
    return found


def usual_perturbations(
    model: nn.Module, inputs: Any, draws: int = 4, run: Callable[[], None] = lambda: None
) -> tuple[Perturbation, ...]:
    """Return what is measured where nothing else is asked for.

    Rounding to 4, 3 and 2 bits with each kind of scales (compensated where there are linear
    layers), weight noise of 0.1, 0.3 and 0.5, and of images and of tokens each corruption at
    severities 1, 3 and 5.

    Parameters
    ----------
    model : nn.Module
        The model.
    inputs
        Of a batch.
    draws : int, default 4
        Of noise on weights.
    run : callable, optional
        Runs the model on some samples: whole numbers that it looks up column by column are no
        tokens, but features with numbers of their own each.
    """
    has_linear = any(isinstance(each, nn.Linear) for each in model.modules())
    kinds = ("absmax", "least error", *(["compensated"] if has_linear else []))
    roundings = [Rounding(bits, kind) for bits in _BITS for kind in kinds]  # type: ignore[arg-type]
    found: list[str] = []
    tensors = input_tensors(inputs).values()
    if any(map(is_images, tensors)):
        found = [*IMAGE_CORRUPTIONS]
    elif any(map(is_tokens, tensors)) and not _looks_up_columns(model, run):
        found = [*TOKEN_CORRUPTIONS]
    corruptions = [Corruption(kind, each) for kind in found for each in _MEASURED_SEVERITIES]
    noises = [WeightNoise(share, draws) for share in _NOISES]
    return (*roundings, *noises, *corruptions)


def _looks_up_columns(model: nn.Module, run: Callable[[], None]) -> bool:
    """Whether a model has embeddings, and none of them is given more than one column at once."""
    columns: list[int] = []

    def note(_: nn.Module, given: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        looked_up = given[0] if given else keywords["input"]
        columns.append(looked_up.shape[-1] if looked_up.ndim > 1 else 1)

    kinds = nn.Embedding | nn.EmbeddingBag
    found = [each for each in model.modules() if isinstance(each, kinds)]
    handles = [each.register_forward_pre_hook(note, with_kwargs=True) for each in found]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return bool(columns) and max(columns) == 1


@contextmanager
def changed_weights(
    model: nn.Module,
    perturbation: Perturbation,
    seed: int,
    draw: int,
    run: Callable[[], None],
) -> Iterator[None]:
    """Perturb a model's weights in the block, and put them back exactly.

    Parameters
    ----------
    model : nn.Module
        The model.
    perturbation : Perturbation
        One of inputs changes nothing here.
    seed, draw : int
        What noise is drawn by.
    run : callable
        Runs the model on some samples, for what needs the inputs of its layers.
    """
    if isinstance(perturbation, Corruption):
        yield
        return
    # Ctrl-C must not come while weights are put back.
    with uninterrupted() as interruptible, torch.no_grad():
        saved = [(weight, weight.detach().clone()) for _, weight in weights_of(model)]
        try:
            with interruptible():
                perturbation.change(model, generator_of(seed, perturbation.name, draw), run)
                with torch.enable_grad():
                    yield
        finally:
            for weight, value in saved:
                weight.copy_(value)


def generator_of(seed: int, *what: object) -> Generator:
    """Return a generator on the CPU that depends on nothing but the arguments."""
    text = "/".join(map(str, (checked_seed(seed), *what)))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
