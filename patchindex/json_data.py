"""JSON of settings and results, which may hold numbers of NumPy and other objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["as_json", "json_text"]


def json_text(data: Any, *, indent: int | None = None) -> str:
    """Return data as JSON text: NumPy numbers become Python numbers, and other objects become text.

    Examples
    --------
    >>> json_text({"n": np.int64(3), "sizes": (1, 2), "label": None})
    '{"n": 3, "sizes": [1, 2], "label": null}'
    """
    return json.dumps(data, indent=indent, default=_plain)


def as_json(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return data as JSON reads them back: tuples become lists, and keys become text.

    Examples
    --------
    >>> as_json({"beta": np.float32(0.5), "sizes": (1, 2)})
    {'beta': 0.5, 'sizes': [1, 2]}
    """
    return dict(json.loads(json_text(dict(data))))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)
