"""A text classifier of Hugging Face, with random weights, on batches that are dictionaries.

steppe compare examples/tasks/text_classifier.py:task --optimizers adamw,adamcm

Needs: pip install transformers torchmetrics. The loss is the model's own, and the F₁ score that of
torchmetrics.
"""

import random
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import BinaryF1Score
from transformers import BertConfig, BertForSequenceClassification

from steppe.compare import Metric, Task

WORDS = ["a", "film", "plot", "was", "and", "good", "great", "moving", "bad", "dull", "boring"]
GOOD, BAD = {"good", "great", "moving"}, {"bad", "dull", "boring"}


def reviews() -> list[dict[str, Any]]:
    """600 reviews of random words: the label says whether there are more good than bad ones."""
    rng, found = random.Random(0), []
    while len(found) < 600:
        words = rng.choices(WORDS, k=rng.randint(4, 12))
        balance = sum((word in GOOD) - (word in BAD) for word in words)
        if balance:
            found.append({"words": words, "label": int(balance > 0)})
    return found


def to_batch(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad the numbers of the words of each review to the longest of the batch."""
    numbers = [torch.tensor([1 + WORDS.index(word) for word in x["words"]]) for x in samples]
    tokens = nn.utils.rnn.pad_sequence(numbers, batch_first=True)
    labels = torch.tensor([each["label"] for each in samples])
    return {"input_ids": tokens, "attention_mask": (tokens > 0).long(), "labels": labels}


def make_model() -> nn.Module:
    config = BertConfig(
        vocab_size=len(WORDS) + 1,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    return BertForSequenceClassification(config)


class F1(BinaryF1Score):
    """F₁ of a batch's labels, which the outputs of the model are compared with."""

    def update(self, outputs: Any, batch: dict[str, Tensor]) -> None:
        super().update(outputs.logits.softmax(dim=1)[:, 1], batch["labels"])


def is_right(outputs: Any, batch: dict[str, Tensor]) -> Tensor:
    return outputs.logits.argmax(dim=1) == batch["labels"]


task = Task(
    name="reviews",
    model=make_model,
    train=reviews,
    validation=0.2,
    test=0.2,
    collate_fn=to_batch,
    metrics={"accuracy": Metric(is_right, unit="%", factor=100), "F₁": F1()},
    epochs=5,
    batch_size=32,
    max_grad_norm=1.0,
)
