"""Fill a page's template. The page asks nothing of the network and runs no script but its own."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from typing import Any

from steppe._shared.json_values import json_ready
from steppe._shared.page.parts import Chart

_SHARED = "steppe._shared.page"


def render(
    package: str,
    charts: Sequence[Chart],
    /,
    *,
    scripts: Sequence[str] = (),
    style: str = "",
    **content: Any,
) -> str:
    """Fill a package's ``template.html``, which can import ``macros.html`` of all pages.

    Parameters
    ----------
    package : str
        The package that holds ``template.html``.
    charts : sequence of Chart
        The page's charts. The template gets them as ``chart_data``; without any, plotly.js, which
        takes 5 MB, is left out.
    scripts : sequence of str
        The package's own scripts, run after the ones that all pages have. The template gets all of
        them as ``scripts``, and as ``hashes`` the names that its content security policy allows
        them by.
    style : str, default ""
        The package's own style sheet, added to the one that all pages have.
    **content
        Further variables of the template. Texts are escaped.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=ChoiceLoader(
            [PackageLoader(*name.rsplit(".", 1)) for name in (package, __package__)]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Jinja would sort the keys of JSON, and so put a study's optimizers into another order.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "allow_nan": False}
    environment.policies["json.dumps_function"] = _dumps
    scripts = [*([get_plotlyjs()] if charts else []), read(_SHARED, "page.js"), *scripts]
    return environment.get_template("template.html").render(
        scripts=scripts,
        hashes=[_hash(script) for script in scripts],
        style=read(_SHARED, "style.css") + style,
        chart_data=[asdict(chart) for chart in charts],
        **content,
    )


def read(package: str, name: str) -> str:
    """Return the text of a file in a package."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _dumps(value: Any, **how: Any) -> str:
    """Write JSON, which has no infinity: a run's score may be infinite though its loss is not."""
    # So many digits are all that a number has.
    return json.dumps(json_ready(value, digits=17), **how)
