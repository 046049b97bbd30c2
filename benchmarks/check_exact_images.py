r"""Check kept exact images against float64: some pixels of some steps of the trajectory, by the other engine.

    python benchmarks/check_exact_images.py cifar10_train.npz

The trajectory was computed by the CPU kernel in float32. Here the same posterior means are computed for a few
pixels by unfolding every patch in float64.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import patchindex as pi
from patchindex.exact import scan
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages
from patchindex.schedules import noise_schedule


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="IMAGES")
    parser.add_argument(
        "--trajectory", type=Path, default=Path(__file__).parent / "data" / "cifar10_exact_trajectory.npz"
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 6, 12, 18])
    parser.add_argument("--pixels", type=int, default=8)
    args = parser.parse_args()
    with np.load(args.trajectory) as archive:
        kept = dict(archive)
    settings = json.loads(str(kept["settings"]))
    count, settings = settings["images"], settings["settings"]
    training = TrainingImages(pi.open_images(args.source).read(slice(0, count)))
    rng, worst = np.random.default_rng(0), 0.0
    for step in args.steps:
        start = time.perf_counter()
        t, k = float(kept["t"][step]), int(kept["k"][step])
        geometry = Geometry.of(settings["machine"], k, training.size, settings["train_windows"])
        beta = noise_schedule(settings["noise"])(t)
        some = torch.from_numpy(rng.choice(geometry.size[0] * geometry.size[1], args.pixels, replace=False))
        x = torch.from_numpy(kept["x"][step : step + 1])
        state = scan(training, geometry, x, (1 - beta) ** 0.5, beta, pixels=[some], dtype=torch.float64)
        mean = torch.from_numpy(kept["mean"][step]).flatten(1)
        off = float((mean[:, some] - state.mean().T).abs().max())
        print(
            f"t = {t:.2f}, k = {k}: {args.pixels} pixels, {count} images: {off:.1e} apart at most, of values "
            f"up to {float(mean.abs().max()):.2f} ({time.perf_counter() - start:.0f} s)",
            flush=True,
        )
        worst = max(worst, off / float(mean.abs().max()) / (2e-5 if t >= 0.3 else 5e-4))
    if worst > 1:
        raise SystemExit(
            "further apart than float32 is held to: 2e-5 of the largest value, 5e-4 below t = 0.3"
        )


if __name__ == "__main__":
    main()
