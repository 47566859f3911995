"""Show what users typed without the passwords in it.

A password can stand anywhere in a database's URL, and a URL with a stray ``@``, ``/`` or blank is
cut into parts differently by everyone who reads it. So of a URL nothing is shown but its scheme.
"""

import re
import shlex
from collections.abc import Iterable
from urllib.parse import unquote, unquote_plus

#: Stands for what is not shown.
HIDDEN = "…"

# Parameters of a URL that are no secrets, and that an error may have to name.
_HARMLESS = {"host", "hostaddr", "port", "user", "dbname", "sslmode", "connect_timeout", "charset"}
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*$")
# Broken URLs, and what libpq takes in the place of a URL.
_CREDENTIALS = re.compile(r":[^/]*@|(pass\w*|pwd|secret|token|api_?key)\s*=", re.IGNORECASE)


def shown(text: str) -> str:
    """Return a word of a command line as everybody may see it: of URLs only the scheme.

    Examples
    --------
    >>> shown("postgresql://me:secret@host/db"), shown("--storage=mysql://host/db?password=secret")
    ('postgresql://…', '--storage=mysql://…')
    >>> shown("results/digits"), shown("host=here password=secret")
    ('results/digits', '…')
    """
    option, equals, value = text.partition("=")
    if equals and re.fullmatch(r"--?[\w-]+", option):
        return f"{option}={shown(value)}"
    before, separator, _ = text.partition("://")
    if separator:
        scheme = _SCHEME.search(before)
        return f"{scheme.group() if scheme else ''}://{HIDDEN}"
    return HIDDEN if _CREDENTIALS.search(text) else text


def without_credentials(message: str, words: Iterable[str]) -> str:
    """Return a message about a command line without the credentials in its words.

    Examples
    --------
    >>> url = "postgresql://me:secret@host/db"
    >>> without_credentials(f"unused: ['{url}']", ["report", url])
    "unused: ['postgresql://…']"
    """
    for word in words:
        for each in (word, word.partition("=")[2]):
            if shown(each) != each:
                for spelt in (each, repr(each)[1:-1], shlex.quote(each)):
                    message = message.replace(spelt, shown(each))
    return message


def scrubbed(message: str, where: str) -> str:
    """Return a message without what may be secret in the URL that it is about.

    Parameters
    ----------
    message : str
        An error of a database or its driver.
    where : str
        The URL.

    Examples
    --------
    >>> scrubbed("no server at host: tried secret", "postgresql://me:secret@host/db")
    'no server at host: tried …'
    """
    message = message.replace(where, shown(where))
    for secret in sorted(_secrets(where), key=len, reverse=True):
        # Short ones only as words of their own: a password of one letter is in every message.
        edge = r"\b" if len(secret) < 4 and secret.isalnum() else ""
        message = re.sub(f"{edge}{re.escape(secret)}{edge}", HIDDEN, message)
    return message


def _secrets(where: str) -> set[str]:
    """Return all that may be a password in a URL, in every spelling, and its parts."""
    rest = where.partition("://")[2] or where
    before, at, after = rest.rpartition("@")
    values = [(before if at else rest).partition(":")[2]]
    # Where a port stands, it may be a part of the password.
    values += [each for each in re.findall(r":([^/?#]*)", after) if not each.isdigit()]
    for pair in re.split(r"[?&;#]", rest)[1:]:
        name, _, value = pair.partition("=")
        if name.strip().lower() not in _HARMLESS:
            values.append(value or name)
    spelt = {each for value in values for each in (value, unquote(value), unquote_plus(value))}
    parts = {part for each in spelt for part in re.split(r"[@:/?&=#%\s]+", each)}
    return {each for each in spelt | parts if each}
