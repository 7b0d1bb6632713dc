"""Templates to pages, in which everything foreign stays text.

``jinja2`` escapes, and a content security policy with hashes forbids what the page does not bring.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ddbench.base.machine import code
from ddbench.errors import UsageError

if TYPE_CHECKING:
    from jinja2 import Environment as Environment


def environment() -> Environment:
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise UsageError(f"pages need jinja2 ({error}); pip install jinja2") from error
    return Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(page: Environment, name: str, root: str | None = None, **given: Any) -> str:
    """A page as text; ``root`` leads from it to the files beside the site's pages, None for a page that has none."""
    from markupsafe import Markup

    assets = {kind: _asset(f"page.{kind}") for kind in ("css", "js")}
    images = "data:" if root is None else "'self' file:"
    policy = (
        f"default-src 'none'; img-src {images}; style-src {_hash(assets['css'])}; script-src {_hash(assets['js'])}; "
        "base-uri 'none'; form-action 'none'"
    )
    trusted = {kind: Markup(text) for kind, text in assets.items()}  # noqa: S704  (our own files)
    return page.get_template(name).render(**_marked(given), **trusted, policy=policy, root=root or "", code=code())


def _marked(value: Any) -> Any:
    """Charts, and nothing else, as they are: they were built from elements, not from text."""
    from markupsafe import Markup

    if isinstance(value, dict):
        return {n: Markup(v) if n == "svg" else _marked(v) for n, v in value.items()}  # noqa: S704
    return [_marked(v) for v in value] if isinstance(value, list) else value


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def _asset(name: str) -> str:
    return files("ddbench.boards").joinpath("templates", name).read_text(encoding="utf-8")
