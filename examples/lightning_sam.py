"""Train on handwritten digits with AdamCM, plain or in SAM, by Lightning.

Lightning takes all devices it finds::

    pip install steppe lightning scikit-learn
    python examples/lightning_sam.py --epochs 10 --out-dir runs/lightning
    python examples/lightning_sam.py --epochs 10 --out-dir runs/lightning-sam --sam

With ``--resume`` the same command goes on from the last epoch that was saved.
"""

import argparse

import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

import steppe
from steppe.integrations.lightning import LightningSAM

Batch = tuple[Tensor, Tensor]


class Digits(LightningModule):
    """A small convolutional network and its data; Lightning runs the optimizer."""

    def __init__(self, sam: bool) -> None:
        super().__init__()
        self.sam = sam
        self.network = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10)
        )

    def train_dataloader(self) -> DataLoader:
        """Shuffle each epoch by its number, so that a resumed run sees the same batches."""
        images, labels = load_digits(return_X_y=True)
        images = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
        generator = torch.Generator().manual_seed(self.current_epoch)
        order = torch.randperm(len(images), generator=generator).tolist()
        return DataLoader(TensorDataset(images, torch.tensor(labels)), batch_size=64, sampler=order)

    def configure_optimizers(self) -> Optimizer:
        """Make the optimizer."""
        if self.sam:
            return steppe.SAM(self.parameters(), steppe.AdamCM, lr=1e-3, rho=0.05)
        return steppe.AdamCM(self.parameters(), lr=1e-3)

    def training_step(self, batch: Batch, number: int) -> Tensor:
        """Return the loss."""
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss


def main() -> None:
    """Train from the first epoch or the last that was saved."""
    parser = argparse.ArgumentParser(description="Train with AdamCM, or SAM, by Lightning.")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--sam", action="store_true", help="step with SAM around AdamCM")
    parser.add_argument("--out-dir", default="runs/lightning")
    parser.add_argument("--resume", action="store_true", help="from the last epoch in --out-dir")
    args = parser.parse_args()

    seed_everything(0)
    trainer = Trainer(
        max_epochs=args.epochs,
        log_every_n_steps=10,
        reload_dataloaders_every_n_epochs=1,
        logger=CSVLogger(args.out_dir, name="", version=""),
        callbacks=[
            ModelCheckpoint(args.out_dir, "{epoch}", save_last=True, save_top_k=-1),
            *([LightningSAM()] if args.sam else []),
        ],
    )
    module = Digits(args.sam)
    trainer.fit(module, ckpt_path="last" if args.resume else None)

    found = module.optimizers().diagnostics()
    print(f"loss {trainer.callback_metrics['loss']:.6f}")
    print(", ".join(f"{name} {value:.4g}" for name, value in found.items()))


if __name__ == "__main__":
    main()
