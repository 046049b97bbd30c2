"""Files of a study: a table as CSV, and everything as JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["write_csv", "write_json"]


def write_csv(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows with the same keys, at least one; None is an empty field."""
    with Path(path).open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: str | Path, **parts: Any) -> None:
    """Write the parts of a study as one object."""
    Path(path).write_text(json.dumps(parts, indent=2, default=str) + "\n")
