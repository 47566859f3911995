"""Counts and errors in words."""


def many(count: int, thing: str) -> str:
    """Write a number of things.

    Examples
    --------
    >>> many(1, "seed"), many(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def first_line(error: BaseException) -> str:
    r"""Write an error in one line, with its kind where the message alone may say too little.

    Examples
    --------
    >>> first_line(KeyError("lr")), first_line(ValueError("lr is 0\nmore"))
    ("KeyError: 'lr'", 'lr is 0')
    """
    kind, lines = type(error).__name__, str(error).strip().splitlines()
    if not lines:
        return kind
    return lines[0] if type(error) is ValueError else f"{kind}: {lines[0]}"
