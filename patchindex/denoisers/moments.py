"""Mean and covariance of whole training images, for the denoisers that are made of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from patchindex.devices import float64_device, to_float64
from patchindex.exact.request import WORKING_MEMORY
from patchindex.images.by_label import TrainingImages, as_tensor, read_ahead
from patchindex.runtime import Progress, no_progress, plain_state

__all__ = ["ImageMoments", "image_moments"]

# Grey levels minus 128 are integers from -128 to 127. A sum of 1024 of their products is at most 2^24, so
# float32 adds the products without rounding, in any order.
GREY, IMAGES = 128, 1024


class ImageMoments(NamedTuple):
    """Moments of the training images of a label, flattened from (C, H, W) to D numbers in [-1, 1].

    Attributes
    ----------
    mean : Tensor, shape (D,), float64
    covariance : Tensor, shape (D, D), float64
        Divided by the number of images; 0 wherever all images are equal.
    """

    mean: Tensor
    covariance: Tensor


@plain_state()
def image_moments(
    training: TrainingImages,
    label: int | None = None,
    *,
    device: torch.device | str = "cpu",
    memory: int = WORKING_MEMORY,
    progress: Progress = no_progress,
) -> ImageMoments:
    """Return the mean and the covariance of the training images in one pass over them.

    Sums of grey levels and of their products are integers, and none is rounded: the moments do not depend on
    `memory`, on threads or on the order of the images.

    Parameters
    ----------
    training : TrainingImages
        N images of D = C * H * W numbers.
    label : int, optional
        The images of this label only.
    device : torch.device or str
        The device that computes the moments. They are on its `float64_device`.
    memory : int
        Bytes for temporary arrays, besides the 8 D^2 bytes of the covariance. The least is about 20 D bytes.
    progress : Progress
        Called with the number of images that are done.

    Raises
    ------
    InputError
        When no image has the label.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.array([[[0, 255]], [[255, 255]]], np.uint8)
    >>> m = image_moments(TrainingImages(images))
    >>> m.mean.tolist(), m.covariance.tolist()
    ([0.0, 1.0], [[1.0, 0.0], [0.0, 0.0]])
    """
    lo, hi = training.range_of(label)
    height, width = training.size
    size = training.channels * height * width
    # An image takes its bytes twice (the next block is read ahead), and twice as floats.
    step = max(1, min(IMAGES, memory // 2 // (10 * size)))
    columns = max(1, min(size, memory // 2 // (12 * size)))
    where = float64_device(device)
    total = torch.zeros(size, dtype=torch.float64, device=where)
    products = torch.zeros((size, size), dtype=torch.float64, device=where)
    done = 0
    with torch.no_grad(), read_ahead(training.blocks(lo, hi, step)) as blocks:
        for block in blocks:
            pixels = as_tensor(block, device).permute(0, 3, 1, 2).flatten(1).float() - GREY
            total += to_float64(pixels.sum(0))  # a whole number below 2^24
            for first in range(0, size, columns):  # the upper triangle
                some = slice(first, first + columns)
                products[some, first:] += to_float64(pixels[:, some].T @ pixels[:, first:])
            done += len(block)
            progress("image moments", done, hi - lo)
    count, unit = hi - lo, 127.5**2
    for first in range(0, size, columns):
        some = slice(first, first + columns)
        products[some, first:] -= torch.outer(total[some], total[first:]) / count
        products[some, first:] /= count * unit
        products[first:, some] = products[some, first:].T.clone()
    return ImageMoments((total / count + GREY) / 127.5 - 1, products)
