"""The plain way to an exact score: unfolded patches, one matrix product a chunk, a streaming softmax.

A good torch user would write it so; only the tables of position classes come from the package. Exponents are
kept from underflowing, where torch's `exp` takes ten times as long. One product sums both the weights and the
weighted centres. `attention` does the same with torch's fused attention kernel, for ELS.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchindex.geometry import Geometry, windows

CHUNK = 1024  # patches; the fastest of 1024 ... 65536 here


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
        found = group.sums[..., 1:] / group.sums[..., :1]
        mean[:, group.query] = found.reshape(len(group.query), batch, -1, channels).transpose(0, 1)
    return mean.transpose(1, 2).reshape(x.shape)


def attention(images: Tensor, x: Tensor, geometry: Geometry, a: float, beta: float) -> Tensor:
    """Return the posterior mean for machines of one position class: patches and their norms are keys."""
    batch, channels, height, width = x.shape
    queries = windows(x, geometry, query=True).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2) * (a / beta)
    queries = torch.cat([queries, torch.ones_like(queries[..., :1])], -1).flatten(0, 1)
    tile = images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    patches, centres = _patches(tile, geometry)
    patches, centres = patches.flatten(0, 1), centres.flatten(0, 1)
    keys = torch.cat([patches, patches.square().sum(-1, keepdim=True).mul_(-0.5 * a * a / beta)], -1)
    # The fused kernel wants values as long as keys.
    values = torch.nn.functional.pad(centres, (0, keys.shape[1] - centres.shape[1]))
    means = torch.nn.functional.scaled_dot_product_attention(
        queries[None, None], keys[None, None], values[None, None], scale=1.0
    )
    return means[0, 0, :, :channels].reshape(batch, height, width, channels).movedim(-1, 1)


def _patches(tile: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Unfold images (n, C, H, W) into patches (n, T, D) and their centres (n, T, C)."""
    rows, columns = (list(axis.train_positions) for axis in (geometry.y, geometry.x))
    patches = windows(tile, geometry, query=False).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    centres = tile[:, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].flatten(2).transpose(1, 2)
    return patches, centres


class Group:
    """Position classes of equal size, whose pixels and training positions make one batched product."""

    def __init__(self, queries: Tensor, query: Tensor, train: Tensor) -> None:
        self.query, self.train = query, train  # (G, Q) pixels and (G, T) training windows
        mine = queries[:, query]  # (B, G, Q, D)
        self.queries = mine.transpose(0, 1).flatten(1, 2).contiguous()  # (G, B Q, D)
        self.top = torch.full((*self.queries.shape[:2], 1), -torch.inf)
        self.sums: Tensor | float = 0.0  # (G, B Q, 1 + C): weights, and weights times centres

    def add(self, tile: Tensor, geometry: Geometry, a: float, beta: float) -> None:
        """Add the patches of images (n, C, H, W)."""
        patches, centres = _patches(tile, geometry)
        if geometry.n_classes > 1:
            patches, centres = (v[:, self.train].transpose(0, 1).flatten(1, 2) for v in (patches, centres))
        else:
            patches, centres = (v.flatten(0, 1)[None] for v in (patches, centres))
        norms = patches.square().sum(-1).mul_(-0.5 * a * a / beta).unsqueeze(1)
        logits = torch.baddbmm(norms, self.queries, patches.transpose(1, 2))
        top = torch.maximum(self.top, logits.amax(-1, keepdim=True))
        weights = logits.sub_(top).clamp_(min=-80).exp_()
        scale = (self.top - top).exp()
        self.sums = self.sums * scale + weights @ torch.cat([torch.ones_like(centres[..., :1]), centres], -1)
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
        return order[torch.isin(values, torch.tensor(numbers, device=values.device))].reshape(
            len(numbers), -1
        )

    return [(of(numbers, 0), of(numbers, 1)) for numbers in sizes.values()]
