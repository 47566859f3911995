"""Write counts and errors as text for messages, the same in all rooms."""


def plural(count: int, thing: str) -> str:
    """Return a count with its noun, in the plural unless the count is 1.

    Examples
    --------
    >>> plural(1, "seed"), plural(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def first_line(error: BaseException) -> str:
    r"""Return an error as one line: its first line, after its class unless that is ValueError.

    Messages of other classes may say too little: that of a KeyError is a key only.

    Examples
    --------
    >>> first_line(KeyError("lr")), first_line(ValueError("lr is 0\nmore"))
    ("KeyError: 'lr'", 'lr is 0')
    """
    kind, lines = type(error).__name__, str(error).strip().splitlines()
    if not lines:
        return kind
    return lines[0] if type(error) is ValueError else f"{kind}: {lines[0]}"


def shortened(text: str, most: int = 80) -> str:
    """Return the beginning of a text that may be of any length, such as a wrong value.

    Examples
    --------
    >>> shortened("abcdef", most=3), shortened("abc", most=3)
    ('abc…', 'abc')
    """
    return text if len(text) <= most else f"{text[:most]}…"
