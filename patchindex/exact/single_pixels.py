"""The exact scan of single pixels in torch: products of their windows and the patches of their class."""

from __future__ import annotations

import torch
from torch import Tensor

from patchindex.exact.request import ScoreRequest
from patchindex.geometry import windows
from patchindex.softmax import SoftmaxState

__all__ = ["SinglePixels"]

# Costs in multiply-adds of the scan of all pixels: of a multiply-add, of copying a number of a window, of a
# pair's softmax, and of the calls for a position class, per image of a tile. They choose the faster way and
# change no result; `benchmarks/exact.py --parts pixels` checks them on a CPU.
WINDOW, COPY, PAIR, CLASS = 0.35, 50.0, 170.0, 1e5


class SinglePixels:
    """Some pixels of the queries, class by class, as the sums of one engine.

    Windows, patches and logits are made in parts that take a quarter of the memory each.
    """

    def __init__(self, request: ScoreRequest, mask: Tensor) -> None:
        geometry = request.geometry
        self._geometry, self._a, self._beta = geometry, request.a, request.beta
        x = request.x.to(request.dtype)
        self._queries = windows(x, geometry, query=True)
        self._numbers = request.memory // 4 // x.element_size()
        batch, place = mask.nonzero(as_tuple=True)
        classes = torch.from_numpy(geometry.query_classes.reshape(-1)).to(x.device)[place]
        members = torch.from_numpy(geometry.train_classes).to(x.device)
        self._classes: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._size = geometry.k**2 * x.shape[1]
        self.parts = len(request.training)  # of a tile: any number
        self.cost, most = 0.0, 1
        for number in classes.unique():
            mine = classes == number
            y, x_ = place[mine] // geometry.size[1], place[mine] % geometry.size[1]
            patches = (members == number).nonzero()[:, 0]
            self._classes.append((batch[mine], y, x_, patches))
            each = self._size * (len(y) * WINDOW + COPY) + len(y) * PAIR
            self.cost += len(patches) * each + CLASS
            most = max(most, len(patches))
        self.bytes_an_image = 3 * most * self._size * x.element_size()

    def add(self, state: SoftmaxState, tile: Tensor) -> None:
        """Add images of P parts (P, m, C, H, W) to their states, of shape (P, W, H, B)."""
        parts, channels, images = len(tile), tile.shape[2], tile.flatten(0, 1)
        sums = state.weight.device
        patches = windows(images, self._geometry, query=False)
        rows, columns = (axis.train_positions for axis in (self._geometry.y, self._geometry.x))
        for batch, query_y, query_x, members in self._classes:
            for some in members.split(max(1, self._numbers // (3 * self._size * len(images)))):
                y, x = some // len(columns), some % len(columns)
                mine = patches[:, :, y, x].transpose(1, 2).reshape(len(images) * len(some), -1)
                norms = mine.square().sum(1) * (-0.5 * self._a * self._a / self._beta)
                centres = (
                    images[:, :, y + rows[0], x + columns[0]].transpose(1, 2).reshape(parts, 1, -1, channels)
                )
                at_once = max(1, self._numbers // (2 * self._size + 4 * len(mine)))
                for b, qy, qx in zip(*(p.split(at_once) for p in (batch, query_y, query_x)), strict=True):
                    window = self._queries[b, :, qy, qx].flatten(1) * (self._a / self._beta)
                    logits = torch.addmm(norms, window, mine.T).reshape(len(b), parts, -1).transpose(0, 1)
                    at = (place.to(sums) for place in (qx, qy, b))
                    state.merge(SoftmaxState.of(logits, centres), (slice(None), *at))
