"""Run by tests in a new process: resume every saved run and save where it ends."""

import sys
from pathlib import Path

import torch

from helpers.optimizer_configs import CONFIGS, train, values


def main(folder: Path, end: int) -> None:
    for file in sorted(folder.glob("*.start.pt")):
        number, step = (int(part) for part in file.name.split(".")[0].split("-"))
        saved = torch.load(file, weights_only=True)
        params = [value.requires_grad_() for value in saved["params"]]
        optimizer = CONFIGS[number](params)
        optimizer.load_state_dict(saved["optimizer"])
        train(optimizer, params, range(step, end))
        torch.save(values(params), folder / f"{number}-{step}.end.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
