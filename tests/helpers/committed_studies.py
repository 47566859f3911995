"""The studies in docs/results."""

from functools import cache
from pathlib import Path

from steppe.compare.records.results import StudyResults, load

RESULTS = Path(__file__).parents[2] / "docs" / "results"
STUDIES = sorted(path for path in RESULTS.glob("*.json") if "calibration" not in path.name)


@cache
def committed(path: Path) -> StudyResults:
    """Read a study once: the largest takes a second."""
    return load(path)
