"""Give every pass over the data the same random numbers, and put all generators back afterwards.

Instruments compare passes with each other: a Hessian's product with the next, the loss here with
the loss there. Data and model must be the same in each, whatever they draw from.
"""

import copy
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

from steppe.landscape.objective.reachable import reachable

# A generator: torch's, NumPy's, Python's, or the module that holds the global one.
_Generator = Any
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)

_PLAIN = (int, float, str, type(None))


class RandomState:
    """All random generators that data and model may draw from.

    These are the global ones of torch, NumPy and Python, and those that the data (loaders,
    samplers, data sets, transforms), the model and the loss hold. Worker processes are seeded by
    their loader, which draws from one of these; they are started anew for each pass, as persistent
    ones go on drawing.

    Parameters
    ----------
    model : nn.Module
        The model.
    data : iterable
        The batches.
    held : iterable
        What the model and the loss hold.
    """

    def __init__(self, model: nn.Module, data: Iterable[Any], held: Iterable[object]) -> None:
        in_data = list(reachable(data))
        self._global: list[_Generator] = [torch.default_generator, np.random, random]
        if any(tensor.is_cuda for tensor in model.parameters()):
            self._global += torch.cuda.default_generators
        self._of_data = [each for each in in_data if _is_generator(each)]
        self._of_model = [each for each in held if _is_generator(each)]
        # Samplers count epochs, on which the order of their samples depends. Every pass begins with
        # the counts of now.
        self._counting = [vars(each) for each in in_data if isinstance(each, Sampler | DataLoader)]
        self._first_counters = self._counters()
        self._loaders = [vars(each) for each in in_data if isinstance(each, DataLoader)]

    def of_model(self) -> "RandomState":
        """Return the state of the model and the process alone: that of the data stays as it is."""
        part = copy.copy(self)
        part._of_data, part._counting, part._loaders = [], [], []
        part._first_counters = []
        return part

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put all generators and samplers back when the block ends."""
        every = [*self._global, *self._of_data, *self._of_model]
        states, counters = [_state(generator) for generator in every], self._counters()
        try:
            yield
        finally:
            for generator, state in zip(every, states, strict=True):
                _set_state(generator, state)
            # Training may have counted on since the first pass.
            self._set_counters(counters)

    def begin_pass(self) -> None:
        """Set everything that the data draw from to the state in which each pass begins."""
        self._set_counters(self._first_counters)
        for loader in self._loaders:
            # Persistent workers keep their generators from pass to pass; and masks of dropout
            # belong to a batch's position.
            loader["persistent_workers"], loader["in_order"] = False, True
        _seed_all([*self._global, *self._of_data], 0)

    def begin_batch(self, position: int) -> None:
        """Set the global generators before a batch is fetched: the model has drawn from them."""
        _seed_all(self._global, 2 * position)

    def begin_forward(self, position: int) -> None:
        """Set what the model draws from before it is run on a batch."""
        _seed_all([*self._global, *self._of_model], 2 * position + 1)

    def _counters(self) -> list[dict[str, Any]]:
        return [
            {name: value for name, value in attributes.items() if isinstance(value, _PLAIN)}
            for attributes in self._counting
        ]

    def _set_counters(self, counters: Iterable[dict[str, Any]]) -> None:
        for attributes, values in zip(self._counting, counters, strict=True):
            attributes.update(values)


def _is_generator(value: object) -> bool:
    return isinstance(value, _GENERATORS) and not isinstance(value, random.SystemRandom)


def _seed_all(generators: Iterable[_Generator], seed: int) -> None:
    for generator in generators:
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        elif isinstance(generator, np.random.Generator):
            bits = generator.bit_generator
            bits.state = type(bits)(seed).state
        else:
            generator.seed(seed)


def _state(generator: _Generator) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    is_pythons = generator is random or isinstance(generator, random.Random)
    return generator.getstate() if is_pythons else generator.get_state()


def _set_state(generator: _Generator, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif generator is random or isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)
