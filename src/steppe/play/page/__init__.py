"""A play as one HTML file."""

from steppe.play.page.document import page, write_page

__all__ = ["page", "write_page"]
