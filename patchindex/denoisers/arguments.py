"""Arguments of `posterior_mean`: a time and a number per image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchindex.checks import is_whole
from patchindex.errors import InputError

__all__ = ["image_numbers", "times_of"]


def times_of(t: float | Tensor, batch: int) -> list[float]:
    """Return a time per image; refuse times outside (0, 1), and another number of them."""
    try:
        times = torch.as_tensor(t, dtype=torch.float64).flatten().tolist()
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
    else:
        return list(map(int, numbers))  # numbers of NumPy would overflow
    raise InputError(what, parameter="image_ids", remedy="give one number for each image")
