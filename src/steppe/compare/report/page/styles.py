"""The style of each optimizer of a study."""

from steppe._shared.page.styles import Style, styles_of
from steppe.compare.records.results import StudyResults


def styles(results: StudyResults) -> dict[str, Style]:
    """Return the style of every optimizer, by its position in the study."""
    return styles_of(each.name for each in results.contenders)
