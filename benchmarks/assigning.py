"""The compiled assignment of patches to lists against matrix products and the minima of their rows.

python benchmarks/assigning.py

Random vectors and 362 cells of 362 lists, as full CIFAR-10 has; in turn, five times.
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import torch
from timing import table

from patchindex.index.lists import ASSIGNED_AT_ONCE, InvertedLists

CELLS, VECTORS = 362, 400_000


def main() -> None:
    rows = []
    for dims in (24, 56):
        rng = np.random.default_rng(0)
        cells = 3 * rng.standard_normal((CELLS, dims)).astype(np.float32)
        lists = (np.repeat(cells, CELLS, 0) + rng.standard_normal((CELLS**2, dims))).astype(np.float32)
        inverted = InvertedLists(
            lists, np.array([0, CELLS**2]), cells, np.arange(CELLS + 1) * CELLS, torch.device("cpu")
        )
        near = lists[rng.integers(0, len(lists), VECTORS)] + rng.standard_normal((VECTORS, dims))
        vectors, classes = torch.from_numpy(near.astype(np.float32)), np.zeros(VECTORS, np.int64)
        inverted.assign(vectors[:100], classes[:100])  # loads kernels
        taken: dict[str, list[float]] = {"compiled": [], "products": []}
        for _ in range(5):
            start = time.perf_counter()
            ours = inverted.assign(vectors, classes)
            taken["compiled"].append(time.perf_counter() - start)
            start = time.perf_counter()
            plain = torch.cat([inverted._assign_by_torch(v, 0) for v in vectors.split(ASSIGNED_AT_ONCE)])
            taken["products"].append(time.perf_counter() - start)
        ratios = [p / c for c, p in zip(*taken.values(), strict=True)]
        rows.append(
            {"dims": dims}
            | {f"{way}, us": 1e6 * median(times) / VECTORS for way, times in taken.items()}
            | {"ratio": median(ratios), "same": float((ours == plain.numpy()).mean())}
        )
    print(f"{torch.get_num_threads()} threads, microseconds a vector")
    print(table(rows, {"dims": "d"} | dict.fromkeys(list(rows[0])[1:4], ".2f") | {"same": ".5f"}))


if __name__ == "__main__":
    main()
