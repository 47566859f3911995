"""Train on handwritten digits with SAM around DualAdam, by Accelerate.

In one process, or in several; in mixed precision, where the device has it::

    pip install steppe accelerate scikit-learn
    accelerate launch examples/accelerate_sam.py --epochs 10 --out-dir runs/accelerate
    accelerate launch --num_processes 2 --mixed_precision bf16 examples/accelerate_sam.py

With ``--resume`` the same command goes on from the last epoch that was saved.
"""

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import steppe
from steppe.integrations.accelerate import passes, prepare


def options() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description="Train with SAM around DualAdam by Accelerate.")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=16, help="images in a process's batch")
    parser.add_argument("--grad-accumulation", type=int, default=2, help="batches in a step")
    parser.add_argument("--out-dir", type=Path, default=Path("runs/accelerate"))
    parser.add_argument("--resume", action="store_true", help="from the newest epoch in --out-dir")
    return parser.parse_args()


def digits() -> TensorDataset:
    """Return scikit-learn's digits as images of one channel."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return TensorDataset(images, torch.tensor(labels))


def dual_adam_in_sam(model: nn.Module, steps: int) -> steppe.SAM:
    """Return the optimizer. As published, DualAdam has become AdamW after 16 % of the run."""
    return steppe.SAM(model.parameters(), steppe.DualAdam, lr=3e-3, rho=0.05, total_steps=steps)


def newest_epoch(out: Path) -> int:
    """Return the newest epoch that was saved, else 0: a save that was killed is not complete."""
    return max((int(path.parent.name) for path in out.glob("*/complete")), default=0)


def save(accelerator: Accelerator, directory: Path) -> None:
    """Save all that the run goes on from; last, mark it as complete."""
    accelerator.save_state(directory)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (directory / "complete").touch()


def main() -> None:
    """Train from the first epoch or the newest that was saved."""
    args = options()
    accelerator = Accelerator(
        gradient_accumulation_steps=args.grad_accumulation,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))
    batches = DataLoader(digits(), batch_size=args.batch_size, shuffle=True, drop_last=True)
    # Of one process. Accelerate steps schedules once for each, as their batches are shared.
    steps = args.epochs * math.ceil(len(batches) / args.grad_accumulation)
    sam = dual_adam_in_sam(model, round(steps / accelerator.num_processes))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sam, T_max=steps)
    model, optimizer, batches, schedule = prepare(accelerator, model, sam, batches, schedule)

    first = newest_epoch(args.out_dir) if args.resume else 0
    if first:
        accelerator.load_state(args.out_dir / str(first))

    for epoch in range(first, args.epochs):
        batches.set_epoch(epoch)
        losses = []
        for inputs, targets in passes(accelerator, model, optimizer, batches):
            loss = F.cross_entropy(model(inputs), targets)
            accelerator.backward(loss)
            if not optimizer.is_perturbed:
                losses.append(loss.detach())
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        loss = accelerator.reduce(torch.stack(losses).mean(), reduction="mean").item()
        accelerator.print(f"epoch {epoch + 1}: loss {loss:.6f}")
        save(accelerator, args.out_dir / str(epoch + 1))

    accelerator.print(", ".join(f"{k} {x:.4g}" for k, x in optimizer.diagnostics().items()))
    accelerator.end_training()


if __name__ == "__main__":
    main()
