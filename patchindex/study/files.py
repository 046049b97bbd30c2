"""Files of a study: a table as CSV, and everything as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from patchindex.store.atomic import atomic_write

__all__ = ["write_csv", "write_json"]


def write_csv(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows with the same keys, at least one; None is an empty field."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(Path(path), durable=False) as out:
        out.write(text.getvalue().encode())


def write_json(path: str | Path, **parts: Any) -> None:
    """Write the parts of a study as one object."""
    with atomic_write(Path(path), durable=False) as out:
        out.write((json.dumps(parts, indent=2, default=str) + "\n").encode())
