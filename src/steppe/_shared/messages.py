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

    Messages of other classes may say too little: that of a KeyError is a key only. A line that ends
    in a colon, as of errors in loading, says nothing without the one that follows.

    Examples
    --------
    >>> first_line(KeyError("lr")), first_line(ValueError("lr is 0\nmore"))
    ("KeyError: 'lr'", 'lr is 0')
    >>> first_line(ValueError("cannot load:\n\tno lr"))
    'cannot load: no lr'
    """
    kind, lines = type(error).__name__, str(error).strip().splitlines()
    if not lines:
        return kind
    first = lines[0].strip()
    if first.endswith(":") and len(lines) > 1:
        first += f" {lines[1].strip()}"
    return first if type(error) is ValueError else f"{kind}: {first}"


def shortened(text: str, most: int = 80) -> str:
    """Return the beginning of a text that may be of any length, such as a wrong value.

    Examples
    --------
    >>> shortened("abcdef", most=3), shortened("abc", most=3)
    ('abc…', 'abc')
    """
    return text if len(text) <= most else f"{text[:most]}…"
