"""Training images on the device that computes: copied once where they fit, else streamed block by block.

Images stay uint8 on the device. `blocks_on` gives the tiles of a scan, of a range of images or of a selection
in any order (`TrainingImages.select`), and `resident` the copy of all images. A selection shares the copy of
the images that it was taken from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from patchindex.devices import ACCELERATORS, free_bytes, numbered
from patchindex.images.by_label import BLOCK_BYTES, TrainingImages, as_tensor, read_ahead

__all__ = ["blocks_on", "in_root", "resident"]

SHARE = 0.5  # of the free memory of a device that a copy of all images may take

_copies: WeakKeyDictionary[TrainingImages, dict[torch.device, Tensor]] = WeakKeyDictionary()
_copying = Lock()  # scans of several threads share a copy


def resident(training: TrainingImages, device: torch.device, share: float = SHARE) -> Tensor | None:
    """Return all images on a device: uint8, shape (N, H, W, C), in label order.

    The copy is made once and kept as long as `training`. Return None on the CPU, and where the copy would
    take more than `share` of the free memory.
    """
    device = numbered(device)
    with _copying:
        copies = _copies.setdefault(training, {})
        if device not in copies:
            if training.source_bytes > share * free_bytes(device):
                return None
            copies[device] = _copy(training, device)
        return copies[device]


@contextmanager
def blocks_on(
    training: TrainingImages,
    device: torch.device,
    lo: int,
    hi: int,
    most: int,
    multiple: int = 1,
    block_bytes: int | None = None,
) -> Iterator[Iterator[Tensor]]:
    """Iterate over images [lo, hi) in blocks on a device: uint8, shape (n, H, W, C), n at most `most`.

    Images that fit into half of the free memory come from the resident copy, in label order. All other images
    come as `TrainingImages.blocks` reads them, by a thread that is one block ahead, and go to a CUDA device
    through pinned memory. Arguments are as for `TrainingImages.blocks`. The blocks are read-only: some are
    views.

    Examples
    --------
    >>> training = TrainingImages(np.arange(4 * 2 * 2, dtype=np.uint8).reshape(4, 2, 2))
    >>> reversed_ = training.select(np.array([3, 2, 1, 0]))
    >>> with blocks_on(reversed_, torch.device("cpu"), 0, 4, most=3) as blocks:
    ...     [block[:, 0, 0, 0].tolist() for block in blocks]
    [[12, 8, 4], [0]]
    """
    root, numbers = in_root(training, slice(lo, hi))
    copy = resident(root, device)
    if copy is not None:
        image_bytes = training.source_bytes // len(training)
        size = min(most, max(multiple, (block_bytes or BLOCK_BYTES) // image_bytes // multiple * multiple))
        yield _slices(copy, numbers, size)
        return
    host = training.blocks(lo, hi, most, multiple, block_bytes)
    accelerator = ACCELERATORS.get(device.type)
    if accelerator is None or not accelerator.pins_memory:
        with read_ahead(host) as blocks:
            yield (as_tensor(block, device) for block in blocks)
        return
    with read_ahead(accelerator.pin(as_tensor(block)) for block in host) as pinned:
        yield (block.to(device, non_blocking=True) for block in pinned)


def _copy(training: TrainingImages, device: torch.device) -> Tensor:
    """Copy all images to a device, block by block, into label order."""
    n = len(training)
    images = torch.empty((n, *training.size, training.channels), dtype=torch.uint8, device=device)
    places, done = training.numbers_of(training.ids_of_blocks(0, n)), 0
    with read_ahead(training.blocks(0, n, n)) as blocks:
        for block in blocks:
            mine = places[done : done + len(block)]
            images[torch.from_numpy(mine).to(device)] = as_tensor(block, device)
            done += len(block)
    return images


def in_root(
    training: TrainingImages, numbers: slice | np.ndarray
) -> tuple[TrainingImages, slice | np.ndarray]:
    """Return the images that all selections were taken from, and the numbers there."""
    while training.parent is not None:
        training, outer = training.parent
        if isinstance(outer, np.ndarray):
            numbers = outer[numbers]
            continue
        first = outer.indices(len(training))[0]
        if isinstance(numbers, slice):
            numbers = slice(first + numbers.start, first + numbers.stop)
        else:
            numbers = first + numbers
    return training, numbers


def _slices(images: Tensor, numbers: slice | np.ndarray, size: int) -> Iterator[Tensor]:
    """Yield the images with some numbers, `size` at a time."""
    if isinstance(numbers, slice):
        yield from images[numbers].split(size)
        return
    for first in range(0, len(numbers), size):
        some = torch.from_numpy(numbers[first : first + size])
        yield images.index_select(0, some.to(images.device))
