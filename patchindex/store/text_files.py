"""CSV and JSON files of settings and results, which may hold numbers of NumPy and other objects."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patchindex.store.atomic import atomic_write

__all__ = ["as_json", "csv_text", "json_text", "write_csv", "write_json"]


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    r"""Return rows as CSV: None is an empty field.

    Without `columns`, there is at least one row, whose keys are the columns.

    Examples
    --------
    >>> csv_text([{"t": 0.5, "k": 3}, {"t": 0.25, "k": None}])
    't,k\n0.5,3\n0.25,\n'
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if columns is None else columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def json_text(data: Any) -> str:
    """Return data as JSON text: NumPy numbers and arrays become numbers and lists, other objects text.

    Examples
    --------
    >>> print(json_text({"n": np.int64(3), "device": Path("cpu")}))
    {
      "n": 3,
      "device": "cpu"
    }
    """
    return json.dumps(data, indent=2, default=_plain)


def as_json(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return data as JSON reads them back: tuples become lists, and keys become text.

    Examples
    --------
    >>> as_json({"beta": np.float32(0.5), "sizes": (1, 2), "widths": np.array([3, 4])})
    {'beta': 0.5, 'sizes': [1, 2], 'widths': [3, 4]}
    """
    return dict(json.loads(json_text(dict(data))))


def write_csv(
    path: str | Path,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] | None = None,
    *,
    durable: bool = False,
) -> None:
    """Write rows as `csv_text` returns them, atomically; `durable` as for `atomic_write`."""
    _write(path, csv_text(rows, columns), durable)


def write_json(path: str | Path, data: Any, *, durable: bool = False) -> None:
    """Write data as `json_text` returns them, atomically; `durable` as for `atomic_write`."""
    _write(path, json_text(data) + "\n", durable)


def _write(path: str | Path, text: str, durable: bool) -> None:
    with atomic_write(Path(path), durable=durable) as file:
        file.write(text.encode())


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)
