r"""Check the kept exact images against float64: some pixels of some steps of their trajectory.

    python benchmarks/check_exact_images.py cifar10_train.npz

The CPU kernel computed the trajectory in float32. The torch engine computes the same posterior means in
float64 here. Ends with an error when they differ by more than the tests allow.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from common import TRAJECTORY, arguments, exact_mean, report, some_pixels, write_json

import patchindex as pi
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages
from patchindex.schedules import noise_schedule


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 6, 12, 18])
    parser.add_argument("--pixels", type=int, default=8)
    args = parser.parse_args()
    with np.load(TRAJECTORY) as archive:
        kept = dict(archive)
    about = json.loads(str(kept["settings"]))
    settings = about["settings"]
    training = TrainingImages(pi.open_images(args.source).read(slice(0, about["images"])))
    rows = []
    for step in args.steps:
        t, k = float(kept["t"][step]), int(kept["k"][step])
        geometry = Geometry.of(settings["machine"], k, training.size, settings["train_windows"])
        x, mean = (torch.from_numpy(kept[name][step]) for name in ("x", "mean"))
        pixels = some_pixels(x[None], args.pixels, seed=step)
        beta = noise_schedule(settings["noise"])(t)
        truth = exact_mean(training, geometry, x[None], beta, pixels=[pixels], dtype=torch.float64)
        off, largest = float((mean.flatten(1)[:, pixels] - truth.T).abs().max()), float(mean.abs().max())
        allowed = largest * (2e-5 if t >= 0.3 else 5e-4)
        rows.append({"t": t, "k": k, "difference": off, "largest value": largest, "allowed": allowed})
    forms = {"t": ".2f", "k": "d", "difference": ".1e", "largest value": ".2f", "allowed": ".1e"}
    report(rows, forms, f"{args.pixels} pixels of each step, {len(training)} images")
    write_json(args.json, rows=rows)
    if any(row["difference"] > row["allowed"] for row in rows):
        raise SystemExit("the kept images differ from float64 by more than the tests allow")


if __name__ == "__main__":
    main()
