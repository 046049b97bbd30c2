"""The plain way to an exact score: unfolded patches, one matrix product a chunk, a streaming softmax.

What a good torch user would write, with nothing of the package but its tables of position classes. Chunks are
small enough for logits to stay in the cache, and exponents are kept from underflowing, which torch's `exp`
takes ten times as long for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchindex.patches import Geometry
from patchindex.windows import windows

CHUNK = 4096  # patches; the fastest of 1024 ... 65536 here


def posterior_mean(images: Tensor, x: Tensor, geometry: Geometry, a: float, beta: float) -> Tensor:
    """Return the posterior mean (B, C, H, W) of queries x under uint8 images (N, H, W, C)."""
    batch, channels, height, width = x.shape
    queries = windows(x, geometry, query=True).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    groups = [Group(queries * (a / beta), *places) for places in _same_size(geometry)]
    for group in groups:
        step = max(1, CHUNK // group.train.numel())
        for start in range(0, len(images), step):
            tile = images[start : start + step].permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
            group.add(tile, geometry, a, beta)
    mean = torch.empty(batch, height * width, channels)
    for group in groups:
        mean[:, group.query] = (
            (group.sums / group.weight).reshape(len(group.query), batch, -1, channels).transpose(0, 1)
        )
    return mean.transpose(1, 2).reshape(x.shape)


class Group:
    """Position classes with as many pixels and as many training positions each: a batched product."""

    def __init__(self, queries: Tensor, query: Tensor, train: Tensor) -> None:
        self.query, self.train = query, train  # (G, Q) pixels and (G, T) training windows
        mine = queries[:, query]  # (B, G, Q, D)
        self.queries = mine.transpose(0, 1).flatten(1, 2).contiguous()  # (G, B Q, D)
        shape = (*self.queries.shape[:2], 1)
        self.top, self.weight = torch.full(shape, -torch.inf), torch.zeros(shape)
        self.sums: Tensor | float = 0.0

    def add(self, tile: Tensor, geometry: Geometry, a: float, beta: float) -> None:
        """Add the patches of images (n, C, H, W)."""
        rows, columns = (list(axis.train_positions) for axis in (geometry.y, geometry.x))
        patches = windows(tile, geometry, query=False).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        patches = patches[:, self.train].transpose(0, 1).flatten(1, 2)  # (G, n T, D)
        centres = tile[:, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].flatten(2).transpose(1, 2)
        centres = centres[:, self.train].transpose(0, 1).flatten(1, 2)
        norms = patches.square().sum(-1).mul_(-0.5 * a * a / beta).unsqueeze(1)
        logits = torch.baddbmm(norms, self.queries, patches.transpose(1, 2))
        top = torch.maximum(self.top, logits.amax(-1, keepdim=True))
        weights = logits.sub_(top).clamp_(min=-80).exp_()
        scale = (self.top - top).exp()
        self.weight = self.weight * scale + weights.sum(-1, keepdim=True)
        self.sums = self.sums * scale + weights @ centres
        self.top = top


def _same_size(geometry: Geometry) -> list[tuple[Tensor, Tensor]]:
    """Group the position classes by their sizes: pixels (G, Q) and training windows (G, T)."""
    query, train = (torch.from_numpy(c).flatten() for c in (geometry.query_classes, geometry.train_classes))
    sizes: dict[tuple[int, int], list[int]] = {}
    counts = zip(
        torch.bincount(query, minlength=geometry.n_classes).tolist(),
        torch.bincount(train, minlength=geometry.n_classes).tolist(),
        strict=True,
    )
    for number, size in enumerate(counts):
        sizes.setdefault(size, []).append(number)
    members = [
        (query.argsort(stable=True), query.sort().values),
        (train.argsort(stable=True), train.sort().values),
    ]

    def of(numbers: list[int], which: int) -> Tensor:
        order, values = members[which]
        return order[torch.isin(values, torch.tensor(numbers))].reshape(len(numbers), -1)

    return [(of(numbers, 0), of(numbers, 1)) for numbers in sizes.values()]
