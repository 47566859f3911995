"""Blocks of pages in docs/ that a script of this folder writes: between its name and an end."""

import re


def with_block(page: str, script: str, text: str, part: str = "") -> str:
    """Return a page with a script's block replaced.

    Parameters
    ----------
    page
        A page's text, with ``<!-- benchmarks/<script>.py -->`` and ``<!-- end -->``.
    script
        The script's name.
    text
        What is to stand between them.
    part
        Which of several blocks: ``<!-- benchmarks/<script>.py <part> -->``.
    """
    name = re.escape(f"benchmarks/{script}.py {part}".strip())
    block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->\n)", re.DOTALL)
    return block.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", page)
