"""Write a sweep's result as one self-contained HTML file."""

from steppe.play.page.document import page, write_page

__all__ = ["page", "write_page"]
