"""Two studies of one task beside each other."""

from steppe.compare.report.two_studies.comparison import StudyComparison, compare
from steppe.compare.report.two_studies.output import (
    page,
    print_comparison,
    tables,
    write_page,
)

__all__ = ["StudyComparison", "compare", "page", "print_comparison", "tables", "write_page"]
