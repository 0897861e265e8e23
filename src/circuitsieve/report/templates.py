"""Pages from templates: each is one file with its style and script inside, and nothing in it is fetched."""

from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

_ASSETS = "assets/report"


def rendered(template: str, *, script: str, **values: Any) -> str:
    """A page as HTML; values are escaped unless they are `Markup`.

    Args:
        template: its file.
        script: the file of its script; `theme.js` runs in every page.
        values: what the template names.

    Raises:
        LookupError: something that the template names is missing.
    """
    environment = Environment(
        loader=PackageLoader("circuitsieve", _ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = Markup("\n").join(_asset(name) for name in ("theme.js", script) if name)
    try:
        return environment.get_template(template).render(style=_asset("style.css"), script=scripts, **values)
    except UndefinedError as error:
        raise LookupError(str(error)) from error


def _asset(name: str) -> Markup:
    return Markup((resources.files("circuitsieve") / _ASSETS / name).read_text("utf-8"))
