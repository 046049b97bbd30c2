"""How numbers and names are said, so that all commands say them alike."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["counted", "size", "some"]

SHOWN = 10  # of many names


def counted(n: int, noun: str) -> str:
    """Say how many there are.

    Examples
    --------
    >>> counted(1, "scale"), counted(1200, "image"), counted(2, "patch")
    ('1 scale', '1,200 images', '2 patches')
    """
    ending = "" if n == 1 else "es" if noun.endswith("ch") else "s"
    return f"{n:,} {noun}{ending}"


def size(n: float) -> str:
    """Say how many bytes, in the units that --memory takes and messages have.

    Examples
    --------
    >>> size(1), size(1536), size(3 * 2**40)
    ('1 byte', '1.5 KiB', '3,072.0 GiB')
    """
    if n < 1024:
        return counted(int(n), "byte")
    power = 1 if n < 2**20 else 2 if n < 2**30 else 3
    return f"{n / 1024**power:,.1f} {'KMG'[power - 1]}iB"


def some(names: Sequence[object], shown: int = SHOWN, between: str = ", ") -> str:
    """Name the first of them.

    Examples
    --------
    >>> some("abc"), some("abc", 2)
    ('a, b, c', 'a, b, ...')
    """
    return between.join([*map(str, names[:shown]), *(["..."] if len(names) > shown else [])])
