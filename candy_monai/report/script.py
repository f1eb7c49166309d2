"""Embed values as JSON in an HTML file, whatever texts they contain."""

from __future__ import annotations

import json
import math
import re
from typing import Any


def as_script(content: object) -> str:
    """Return JSON for a ``script`` element: no text ends the element, and numbers that JSON lacks are null."""
    try:
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(content), separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def read_script(page: str, element: str) -> Any:
    """Return the value that `as_script` wrote into an element of a page; raise if there is none."""
    match = re.search(rf'<script type="application/json" id="{re.escape(element)}">(.*?)</script>', page, re.DOTALL)
    if match is None:
        raise LookupError(f"no element {element!r}")
    return json.loads(match[1])


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
