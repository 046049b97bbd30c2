"""Write golden_fashion.npz: posterior means of real images by brute force.

    python tests/make_golden.py

Keys: images (N, H, W, 1) uint8, labels (N,), and a case in each row of x (cases, C, H, W) float32, beta, t, k
(0: none), machine, label (-1: none), posterior_mean (cases, C, H, W) float64.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
from brute import MACHINES, beta_of, noisy, posterior_mean

HERE = Path(__file__).parent
TIMES = (0.05, 0.3, 0.6, 0.95)
SCALES = (3, 5, 9)
LABEL = 5


def make() -> dict[str, np.ndarray]:
    with np.load(HERE.parent / "data" / "fashion_mnist_6k.npz") as archive:
        # Labels 1, 5 and 9, in the order of the file, which is not the order of the labels.
        kept = np.flatnonzero(np.isin(archive["labels"], (1, 5, 9)))
        images, labels = archive["images"][kept, 8:20, 8:20, None], archive["labels"][kept]
    train, train_labels, held_out = images[:12], labels[:12].astype(np.int64), images[100:]
    cases = []
    for i, t in enumerate(TIMES):
        x = noisy(held_out[i : i + 1], t, seed=i)[0]
        for machine, k, label in product(MACHINES, SCALES, (-1, LABEL)):
            if machine == "IS" and k != SCALES[0]:
                continue
            members = train if label < 0 else train[train_labels == label]
            k = 0 if machine == "IS" else k
            mean = posterior_mean(members, x, beta_of(t), machine, k).mean
            cases.append((x, beta_of(t), t, k, machine, label, mean))
    keys = ("x", "beta", "t", "k", "machine", "label", "posterior_mean")
    columns = {key: np.array(column) for key, column in zip(keys, zip(*cases, strict=True), strict=True)}
    return {"images": train, "labels": train_labels, **columns}


if __name__ == "__main__":
    np.savez_compressed(HERE / "golden_fashion.npz", **make())
