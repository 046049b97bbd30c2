"""The nearest training images of given images, also under cyclic shifts: exact, over the whole data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from patchindex.images.by_label import TrainingImages, as_tensor, read_ahead, to_unit
from patchindex.runtime import Progress, no_progress, plain_state

__all__ = ["Nearest", "nearest_images", "shifts_within"]

KEPT = 4  # candidates per image whose distances are computed again, in float64
WORK_BYTES = 256 << 20


@dataclass(frozen=True)
class Nearest:
    """The training images and shifts nearest to each image, the nearest first.

    Attributes
    ----------
    distance : Tensor, shape (n, m), float64
        Root mean square difference per pixel and channel, in units of [-1, 1].
    image : Tensor, shape (n, m), int64
        Numbers of training images, in the order of `TrainingImages`.
    shift : Tensor, shape (n, m, 2), int64
        Pixels that the training image moves down and to the right, cyclically.
    """

    distance: Tensor
    image: Tensor
    shift: Tensor


def shifts_within(most: int, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return all cyclic shifts (dy, dx) of at most `most` pixels along each axis, (0, 0) first.

    >>> shifts_within(1, (8, 8))[:4]
    [(0, 0), (0, -1), (0, 1), (-1, 0)]
    >>> len(shifts_within(100, (8, 8)))  # every shift once
    64
    """
    along = []
    for n in size:
        reach = range(-most, most + 1) if 2 * most + 1 < n else range(-((n - 1) // 2), n // 2 + 1)
        along.append(sorted(reach, key=lambda s: (s != 0, s)))
    return [(dy, dx) for dy in along[0] for dx in along[1]]


@plain_state()
def nearest_images(
    images: Tensor,
    training: TrainingImages,
    shifts: list[tuple[int, int]],
    *,
    leave_out: Tensor | None = None,
    memory: int = WORK_BYTES,
    progress: Progress = no_progress,
) -> Nearest:
    """Return the training images, each under its best shift, nearest to each image.

    A cyclic shift moves pixels and changes no norm, so the squared distance from v, shifted by s, to x is
    `|x|^2 + |v|^2 - 2 <shift_(-s) x, v>`: a matrix product of all shifted images and a block of training
    images compares them all. It is float32; the `KEPT` = 4 nearest are compared again in float64.

    Parameters
    ----------
    images : Tensor, shape (n, C, H, W)
    training : TrainingImages
    shifts : list of (dy, dx)
    leave_out : Tensor, shape (n,), int64, optional
        A training image, by its number, that each image is not compared with: itself.
    memory : int
        Bytes for the shifted images and the distances.
    """
    n, numbers = len(images), images[0].numel()
    count = len(training) if leave_out is None else len(training) - 1
    kept = min(KEPT, count)
    # Half of the memory is for the shifted images of a group, half for products with a block.
    group = max(1, memory // 2 // (len(shifts) * numbers * 4))
    step = max(1, min(4096, memory // 2 // (4 * (3 * numbers + 2 * group * len(shifts)))))
    parts = []
    for first in range(0, n, group):
        mine = slice(first, first + group)
        x = images[mine].float()
        moved = torch.stack([torch.roll(x, (-dy, -dx), (2, 3)) for dy, dx in shifts], 1).flatten(0, 1)
        moved = moved.permute(0, 2, 3, 1).reshape(len(moved), numbers)
        best = torch.full((len(x), kept), torch.inf)
        image = torch.zeros((len(x), kept), dtype=torch.int64)
        shift = torch.zeros_like(image)
        done = 0
        # In label order, as `TrainingImages` numbers the images.
        blocks = (training.read(lo, min(lo + step, len(training))) for lo in range(0, len(training), step))
        with read_ahead(blocks) as ahead, torch.no_grad():
            for block in ahead:
                v = to_unit(as_tensor(block)).reshape(len(block), numbers)
                # The image's own norm is the same for all, and is left out.
                squares = torch.addmm(v.square().sum(1), moved, v.T, alpha=-2)
                least, which = squares.reshape(len(x), len(shifts), len(v)).min(1)
                if leave_out is not None:
                    own = leave_out[mine] - done
                    rows = ((own >= 0) & (own < len(v))).nonzero()[:, 0]
                    least[rows, own[rows]] = torch.inf
                numbered = torch.arange(done, done + len(v)).expand(len(x), -1)
                best, order = torch.cat([best, least], 1).topk(kept, largest=False)
                image = torch.cat([image, numbered], 1).gather(1, order)
                shift = torch.cat([shift, which], 1).gather(1, order)
                done += len(v)
                progress("nearest images", first * len(training) + len(x) * done, n * len(training))
        parts.append(_again(x, training, image, torch.tensor(shifts)[shift]))
    return Nearest(*(torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])))


def _again(x: Tensor, training: TrainingImages, image: Tensor, shift: Tensor) -> Nearest:
    """Compute the distances of the candidates in float64, and sort them."""
    distance = torch.empty(image.shape, dtype=torch.float64)
    for row in range(len(x)):
        for column, (number, (dy, dx)) in enumerate(
            zip(image[row].tolist(), shift[row].tolist(), strict=True)
        ):
            # Rounded to float32 like x: a copy is then at distance 0.
            v = to_unit(as_tensor(training.read(number, number + 1)))[0].permute(2, 0, 1)
            off = x[row].double() - torch.roll(v, (dy, dx), (1, 2)).double()
            distance[row, column] = off.square().mean().sqrt()
    order = distance.argsort(dim=1, stable=True)
    return Nearest(
        distance.gather(1, order), image.gather(1, order), shift.gather(1, order[..., None].expand(-1, -1, 2))
    )
