"""HTML pages that are one self-contained file, of studies and of play.

:mod:`~steppe._shared.page.parts` has what a page is made of, :mod:`~steppe._shared.page.styles` how
optimizers are told apart in it, and :mod:`~steppe._shared.page.render` fills a room's template with
both. The script, the style sheet and the macros that all pages share lie here too.
"""
