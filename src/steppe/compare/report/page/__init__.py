"""A study as one HTML file."""

from steppe.compare.report.page.document import page, write_page

__all__ = ["page", "write_page"]
