"""The studies in docs/results."""

from functools import cache
from pathlib import Path

from steppe.compare.records.results import StudyResults, load

RESULTS = Path(__file__).parents[2] / "docs" / "results"
# The others hold what scripts of benchmarks/ have measured.
_OTHERS = (
    "calibration",
    "compressed-buffers",
    "escape-network",
    "finetune-24-bits",
    "gpu-check",
    "large-gradients",
    "training-memory",
    "weights-24-bits",
)
STUDIES = sorted(path for path in RESULTS.glob("*.json*") if not path.name.startswith(_OTHERS))


@cache
def committed(path: Path) -> StudyResults:
    """Read a study once: the largest takes a second."""
    return load(path)
