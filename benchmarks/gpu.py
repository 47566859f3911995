"""DualAdam on a GPU with 1 G parameters: against AdamW(fused=True), and against the device's copy.

python benchmarks/gpu.py [--millions 1000] [--steps 20]

Takes 33 GB of device memory. Ends with status 1 if a step takes more than 1.02 times AdamW's, or
moves its bytes at less than 85 % of the speed at which the device copies.
"""

import cyclopts

from steppe._shared.console import refusals
from steppe._shared.devices import find_device
from steppe.bench import find_measured, measure, uniform

MOST_RATIO = 1.02
LEAST_SHARE = 0.85


def main(millions: int = 1000, steps: int = 20, device: str = "cuda") -> None:
    """Measure once, and judge both."""
    shapes = uniform(millions, 1_000_000)
    with refusals():
        torch_device = find_device(device)
    found = measure(f"{millions} M", shapes, find_measured("dualadam"), steps, torch_device)
    share = 1.0 / found.excess
    value, low, high = found.ratio
    print(f"{millions} M parameters, engine {found.engine}: {1e3 * found.seconds:.3f} ms a step")
    print(f"{value:.3f} ({low:.3f}–{high:.3f}) times AdamW(fused=True); at most {MOST_RATIO}")
    print(
        f"{100 * share:.1f} % of the {found.bandwidth / 1e9:.0f} GB/s at which the device copies; "
        f"at least {100 * LEAST_SHARE:.0f} %"
    )
    if value > MOST_RATIO or share < LEAST_SHARE:
        raise SystemExit(1)


if __name__ == "__main__":
    cyclopts.run(main)
