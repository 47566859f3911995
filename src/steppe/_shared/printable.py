"""Text of unknown origin, made fit to be printed, on any terminal.

Names of optimizers, paths and messages of errors may hold control characters or letters that an
encoding has not got; tables and the console print them through it.
"""

import codecs
from typing import TextIO

# Signs of tables and notes, for terminals that have not got them: a number keeps its minus.
_PLAIN = {
    "−": "-",
    "–": "-",
    "—": "-",
    "─": "-",
    "…": "...",
    "†": "+",
    "×": "x",
    "·": ".",
    "≥": ">=",
    "≤": "<=",
    "→": "->",
    "←": "<-",
    "’": "'",
    "λ": "lambda",
    "ρ": "rho",
    "ξ": "xi",
}
_ERRORS = "steppe.plain"


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
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def encodable(text: str, encoding: str) -> str:
    r"""Return a text without what an encoding has not got.

    Examples
    --------
    >>> encodable("λ −0.46 ± é", "ascii")
    'lambda -0.46 \\xb1 \\xe9'
    """
    return text.encode(encoding, _ERRORS).decode(encoding)


def accept_all_text(*streams: TextIO | None) -> None:
    """Let streams print what their encoding has not got in plain letters, instead of failing."""
    for stream in streams:
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors=_ERRORS)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _in_plain_letters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(each) or _escaped(each) for each in text), error.end


codecs.register_error(_ERRORS, _in_plain_letters)
