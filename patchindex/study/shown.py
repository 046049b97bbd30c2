"""Results that show their main rows: as text when they are printed, as a table in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from patchindex.notebook import html_table

__all__ = ["ShownRows", "text_table"]

Row = dict[str, Any]


class ShownRows:
    """A result that prints its summary."""

    def shown_rows(self) -> Sequence[Row]:
        """Return the rows that are printed, all with the same columns: the summary of the result."""
        rows: Sequence[Row] = self.summary()  # type: ignore[attr-defined]
        return rows

    def __str__(self) -> str:
        return text_table(self.shown_rows())

    def _repr_html_(self) -> str:
        rows = self.shown_rows()
        return html_table(type(self).__name__, _columns(rows), _cells(rows))


def text_table(rows: Sequence[Row]) -> str:
    """Return rows as text: a line of column names, and a line per row; numbers have four digits.

    >>> print(text_table([{"denoiser": "LS", "r": 0.84912}, {"denoiser": "wiener", "r": None}]))
    denoiser       r
          LS  0.8491
      wiener
    """
    lines = [_columns(rows), *_cells(rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(rows[0]) if rows else []


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    return [[_text(row[column]) for column in _columns(rows)] for row in rows]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
