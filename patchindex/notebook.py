"""Tables of HTML, which notebooks show."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from patchindex.errors import printable

__all__ = ["html_table"]


def html_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table of text with a title.

    Examples
    --------
    >>> html_table("a < b", ["k"], [[3]])
    '<table><caption>a &lt; b</caption><tr><th>k</th></tr><tr><td>3</td></tr></table>'
    """

    def line(tag: str, cells: Sequence[object]) -> str:
        text = (html.escape(printable(str(cell))) for cell in cells)
        return f"<tr>{''.join(f'<{tag}>{each}</{tag}>' for each in text)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><caption>{html.escape(printable(title))}</caption>{line('th', columns)}{body}</table>"
