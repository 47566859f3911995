"""Run by test_checkpoint in a new process: resume every saved run and save where it ends."""

import sys
from pathlib import Path

import torch

from matrix import CONFIGS, parameters, train, values


def main(folder: Path, dtype: torch.dtype, end: int) -> None:
    for file in sorted(folder.glob("*.start.pt")):
        number, step = (int(part) for part in file.name.split(".")[0].split("-"))
        saved = torch.load(file, weights_only=True)
        params = parameters(dtype, seed=1)
        for p, value in zip(params, saved["params"], strict=True):
            p.data.copy_(value)
        optimizer = CONFIGS[number](params)
        optimizer.load_state_dict(saved["optimizer"])
        train(optimizer, params, range(step, end))
        torch.save(values(params), folder / f"{number}-{step}.end.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), getattr(torch, sys.argv[2]), int(sys.argv[3]))
