"""Pages that are one HTML file: they ask nothing of the network, and no other script runs."""

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any


def render(packages: Sequence[str], scripts: Sequence[str], **content: Any) -> str:
    """Fill the first package's ``template.html``.

    Parameters
    ----------
    packages : sequence of str
        Where templates are looked for, one after the other.
    scripts : sequence of str
        The scripts that may run. The template gets them as ``scripts``, and as ``hashes`` what its
        content security policy names them by.
    **content
        What else it gets. Texts are escaped.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(*name.rsplit(".", 1)) for name in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # What is saved keeps its order.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "allow_nan": False}
    return environment.get_template("template.html").render(
        scripts=scripts, hashes=[_hash(script) for script in scripts], **content
    )


def read(package: str, name: str) -> str:
    """Read a file that lies in a package."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
