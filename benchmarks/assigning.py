"""The compiled assignment of patches to lists, against matrix products and the minima of their rows.

python benchmarks/assigning.py

Random vectors and 362 cells of 362 lists each, as on all of CIFAR-10.
"""

from __future__ import annotations

import numpy as np
import torch
from common import alternate, arguments, report, write_json

from patchindex.index.lists import ASSIGNED_AT_ONCE, InvertedLists

CELLS = 362


def main() -> None:
    parser = arguments(__doc__, source=False, repeats=5)
    parser.add_argument("--vectors", type=int, default=400_000)
    args = parser.parse_args()
    rows = []
    for dims in (24, 56):
        rng = np.random.default_rng(0)
        cells = 3 * rng.standard_normal((CELLS, dims)).astype(np.float32)
        lists = (np.repeat(cells, CELLS, 0) + rng.standard_normal((CELLS**2, dims))).astype(np.float32)
        inverted = InvertedLists(
            lists, np.array([0, CELLS**2]), cells, np.arange(CELLS + 1) * CELLS, torch.device("cpu")
        )
        near = lists[rng.integers(0, len(lists), args.vectors)] + rng.standard_normal((args.vectors, dims))
        vectors, classes = torch.from_numpy(near.astype(np.float32)), np.zeros(args.vectors, np.int64)

        def products(inverted: InvertedLists = inverted, vectors: torch.Tensor = vectors) -> torch.Tensor:
            return torch.cat([inverted._assign_by_torch(v, 0) for v in vectors.split(ASSIGNED_AT_ONCE)])

        times = alternate(
            {"compiled": lambda i=inverted, v=vectors, c=classes: i.assign(v, c), "products": products},
            args.repeats,
        )
        rows.append(
            {"dims": dims}
            | {f"{way}, us": 1e6 * times.median(way) / args.vectors for way in times.seconds}
            | {
                "ratio": times.ratio("products", "compiled"),
                "same": float((times.results["compiled"] == times.results["products"].numpy()).mean()),
            }
        )
    heading = f"{torch.get_num_threads()} threads, microseconds per vector"
    forms = {"dims": "d"} | dict.fromkeys(("compiled, us", "products, us", "ratio"), ".2f") | {"same": ".5f"}
    report(rows, forms, heading)
    write_json(args.json, rows=rows)


if __name__ == "__main__":
    main()
