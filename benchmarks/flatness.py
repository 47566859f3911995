"""Judge what docs/flatness-plan.md declares, and write what came out into docs/.

``python benchmarks/flatness.py`` reads what is in ``docs/results``. It writes the tables of
docs/flatness.md, docs/dualadam.md and docs/escape.md, and the first one's pictures, and computes
nothing but what the plan says. What is not there was not run. Takes a minute or two.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from flatness_pictures import draw_differences, draw_fronts, draw_strengths
from flatness_tables import (
    compute_table,
    cost_table,
    equal_compute_table,
    family_table,
    interaction_table,
    mild_table,
    recipe_table,
    summary_table,
    third_task_table,
    value_table,
)
from flatness_theory_tables import escape_table, window_table
from flatness_training_pictures import draw_forgetting, draw_label_noise
from flatness_training_tables import (
    NOISY_TASKS,
    batch_table,
    forgetting_table,
    label_noise_growth,
    label_noise_table,
    noisy_studies,
)
from flatness_verdicts import (
    CORRUPTIONS,
    FAMILY,
    LEAST,
    NOISE,
    SEEDS,
    TASKS,
    TUNED_FAMILY,
    comparisons,
    forgetting_studies,
    studies_of,
)
from page_blocks import with_block

from steppe._shared.files import write_text
from steppe._shared.pictures import write_png

Study = TypeVar("Study")
ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
PAGES = tuple(ROOT / "docs" / f"{name}.md" for name in ("flatness", "dualadam", "escape"))


def tables() -> dict[str, str]:
    """Return all tables, by the names of their blocks."""
    digits, fashion = NOISY_TASKS
    return {
        "in short": summary_table(),
        "recipe": recipe_table(),
        "clean": family_table(FAMILY),
        "tuned": family_table(TUNED_FAMILY, tuned=True),
        "interaction": interaction_table(),
        "costs": cost_table(),
        "compute": compute_table(),
        "equal compute": equal_compute_table(),
        "mild": mild_table(),
        "corruptions": family_table(CORRUPTIONS),
        "third task": third_task_table(),
        "forgetting": forgetting_table(),
        "label noise, digits": label_noise_table(digits),
        "label noise, growth": f"{label_noise_growth()}.",
        "label noise, FashionMNIST": label_noise_table(fashion),
        "batch size": batch_table(),
        "large gradients": window_table(),
        "escape": escape_table(),
        "values": value_table(),
    }


def rewritten(page: str, written: Mapping[str, str]) -> str:
    """Return a page with those of the tables that it has."""
    for part, table in written.items():
        page = with_block(page, "flatness", table, part)
    return page


def main() -> None:
    """Write the pages' tables and the pictures."""
    written = tables()
    for page in PAGES:
        write_text(page, rewritten(page.read_text(encoding="utf-8"), written))
    _draw_pictures()


def _draw_pictures() -> None:
    """Draw what has been run."""
    complete = {task: found for task in TASKS if (found := _by_seed(studies_of(task)))}
    tests = {
        TASKS[task]: {seed: comparisons(study, FAMILY) for seed, study in studies.items()}
        for task, studies in complete.items()
    }
    if tests:
        write_png(draw_differences(tests), IMAGES / "flatness-differences.png")
        titled_studies = {TASKS[task]: [*studies.values()] for task, studies in complete.items()}
        write_png(draw_strengths(titled_studies), IMAGES / "flatness-strengths.png")
    for task, studies in complete.items():
        titled = {f"{TASKS[task]}, {seed}": study for seed, study in studies.items()}
        write_png(draw_fronts(titled, (NOISE, LEAST)), IMAGES / f"flatness-fronts-{task}.png")
    if forgotten := _by_seed(forgetting_studies()):
        write_png(draw_forgetting(forgotten), IMAGES / "flatness-forgetting.png")
    if noisy := noisy_studies():
        write_png(draw_label_noise(noisy), IMAGES / "flatness-label-noise.png")


def _by_seed(studies: Sequence[Study | None]) -> dict[str, Study]:
    """Return those of the studies that are finished, by their titles."""
    return {
        f"seed {seed}": study
        for seed, study in zip(SEEDS, studies, strict=True)
        if study is not None
    }


if __name__ == "__main__":
    main()
