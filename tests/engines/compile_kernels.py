"""Compile the Triton engine's kernels for a GPU that need not be there, as a launch would.

Usage: compile_kernels.py BACKEND ARCHITECTURE WARP_SIZE. Prints a line of JSON for each kernel.
"""

import json
import re
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from helpers.optimizer_configs import Config
from steppe._engines import dispatch
from steppe._engines.gpu import engine as gpu

CASES = [
    (Config("DualAdam"), torch.float32, None),
    (Config("DualAdam", {"param_error": "int8"}), torch.bfloat16, "int8"),
    (Config("DualAdam", {"scale_free": True}), torch.float64, torch.bfloat16),
    (Config("DualAdam"), torch.bfloat16, "int8"),
    (Config("AdamCM"), torch.float32, None),
    (Config("AdamCM", {"capturable": True}), torch.float16, "int8"),
    (Config("RMSpropCG", {"scope": "tensor", "centered": True}), torch.float32, torch.bfloat16),
]


class Driver:
    """What a launch asks a GPU's driver before it compiles."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def launch(kernel: Any, programs: int, device: object, *arguments: Any, **constants: Any) -> None:
    options = {"num_warps": 4, "enable_fp_fusion": False}
    binary = kernel.warmup(*arguments, **constants, **options, grid=(programs,))
    ptx = binary.asm.get("ptx", "")
    found = {
        "kernel": kernel.__name__,
        "binary": [name for name in ("cubin", "hsaco") if binary.asm.get(name)],
        "wide loads": len(re.findall(r"ld\.global\S*\.(v4\.b32|v2\.b64)", ptx)),
        "wide stores": len(re.findall(r"st\.global\S*\.(v4\.b32|v2\.b64)", ptx)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    backend, architecture, warp_size = sys.argv[1:]
    number = int(architecture) if architecture.isdigit() else architecture
    triton.runtime.driver.set_active(Driver(GPUTarget(backend, number, int(warp_size))))
    gpu._launch = launch
    gpu.DEVICES = ("cpu",)
    dispatch.FUSED = (gpu,)
    for config, dtype, state in CASES:
        p = torch.zeros(8192, dtype=dtype, requires_grad=True)
        p.grad = torch.zeros_like(p)
        config([p], fused=True, state_dtype=state).step()
