"""Text of unknown origin, made fit to be printed."""


def printable(text: str) -> str:
    r"""Write characters that control a terminal, or hide or reorder text, as escapes.

    Names and errors come from files and packages that may be somebody else's.

    Examples
    --------
    >>> print(printable("red\x1b[31m\n"), printable("3 × λ"))
    red\x1b[31m\n 3 × λ
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
