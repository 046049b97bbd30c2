"""Arguments of `posterior_mean`: a time and a number per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor

from patchindex.checks import is_whole
from patchindex.devices import in_float64
from patchindex.errors import InputError, printable
from patchindex.images.unreadable import plain_name

__all__ = ["Label", "image_numbers", "number_of_label", "times_of"]

Label: TypeAlias = int | str  # a number, or the name of one


def number_of_label(label: Label | None, names: Sequence[str] | None) -> int | None:
    """Return the number of a label, given its number or its name.

    Parameters
    ----------
    label : int, str or None
    names : sequence of str or None
        Names of the labels 0, 1, ...

    Raises
    ------
    InputError
        When no label has the name.

    Examples
    --------
    >>> number_of_label("dog", ["cat", "dog"]), number_of_label(7, None)
    (1, 7)
    """
    if not isinstance(label, str):
        return label
    known = [plain_name(name) for name in names or ()]
    if plain_name(label) in known:
        return known.index(plain_name(label))
    shown = ", ".join(known[:NAMES_SHOWN]) + ", ..." * (len(known) > NAMES_SHOWN)
    remedy = f"use one of {shown}" if known else "give its number: the labels have no names"
    raise InputError(f"no label is called {printable(label)!r}", parameter="label", remedy=remedy)


NAMES_SHOWN = 20


def times_of(t: float | Tensor, batch: int) -> list[float]:
    """Return a time per image; refuse times outside (0, 1), and another number of them."""
    try:
        times = in_float64(t).flatten().tolist()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(
            f"is not a time: {t!r}", parameter="t", remedy="give a float, or one for each image"
        ) from None
    if len(times) == 1:
        times = times * batch
    if len(times) != batch:
        raise InputError(
            f"there are {len(times)} times for {batch} images",
            parameter="t",
            remedy="give one time, or one for each image",
        )
    for time in times:
        if not 0 < time < 1:
            raise InputError(
                f"must lie in (0, 1), got {time}", parameter="t", remedy="t = 0 is data, t = 1 is noise"
            )
    return times


def image_numbers(image_ids: Sequence[int] | None, batch: int) -> list[int]:
    """Return the numbers of the images of a batch."""
    if isinstance(image_ids, Tensor):
        image_ids = image_ids.tolist()
    try:
        numbers = list(range(batch) if image_ids is None else image_ids)
    except TypeError:
        numbers = []
    if len(numbers) != batch:
        what = f"there are {len(numbers)} numbers for {batch} images"
    elif not all(map(is_whole, numbers)):
        what = f"must be whole numbers, got {numbers[:3]}"
    elif any(number < 0 for number in numbers):  # `numpy.random.default_rng` takes none
        what = f"must be at least 0, got {numbers[:3]}"
    else:
        return list(map(int, numbers))  # numbers of NumPy would overflow
    raise InputError(what, parameter="image_ids", remedy="give one number for each image")
