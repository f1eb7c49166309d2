"""Write a document as one HTML file with style, script and data, from which the browser makes no requests.

No text of a document becomes markup: it is stored as JSON with escaped ``<``, and the script shows it as text. Title
and status, which are visible before the script runs, are escaped.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path

from candy_monai.files import atomic_write_text
from candy_monai.report.document import Document
from candy_monai.report.script import as_script

_SCRIPTS = ("dom.js", "chart.js", "table.js", "viewer.js", "sections.js", "comparison.js", "page.js")


def page_of(document: Document) -> str:
    """Return the HTML of a document."""
    assets = _assets()
    parts = {
        "policy": assets["policy"],
        "style": assets["style"],
        "script": assets["script"],
        "title": _escaped(document.title),
        "status": _escaped(document.status),
        "data": as_script(document.content),
        "kept": as_script(document.kept),
        "views": document.views,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], assets["page"])


def _escaped(text: str) -> str:
    """Return a text without markup; bytes of a path that are no UTF-8 become question marks."""
    return html.escape(text.encode(errors="replace").decode())


def write_page(document: Document, path: Path) -> Path:
    """Write a document's page atomically, and return its path."""
    atomic_write_text(path, page_of(document), durable=False)
    return path


@cache
def _assets() -> Mapping[str, str]:
    """Return the parts that all pages have in common."""
    folder = resources.files("candy_monai.report") / "assets"
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", *_SCRIPTS)}
    script = '"use strict";\n(() => {\n' + "\n".join(texts[name] for name in _SCRIPTS) + "\n})();\n"
    style = texts["page.css"]
    # Nothing but this style and this script takes effect, and no address is requested.
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {_digest(style)}; script-src {_digest(script)}"
    )
    return {"page": texts["page.html"], "style": style, "script": script, "policy": policy}


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
