"""The truncated softmax against the exact score, whole trajectories from the same noise.

    python benchmarks/topk_baseline.py IMAGES --limit 2000 --scales 3,7,15 -n 8 --work DIR

builds a store in DIR and draws n images with `topk` from the noise of seed 0, by the two commands a user
would type, draws them with `exact`, and prints times, each command's peak anonymous memory, and Pearson's r
and R2 of each image; JSON goes to DIR/topk_baseline.json.
The exact trajectory takes long: it is kept in DIR/exact.npz after every step, and taken up from there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from peak import run_measured

import patchindex as pi
from patchindex.sampling import ddim
from patchindex.study import pearson_r, r2, rmse


def exact_images(machine: pi.ScoreMachine, noise: torch.Tensor, path: Path) -> tuple[torch.Tensor, float]:
    """Draw with the exact score, step by step, going on from what `path` holds; return images and seconds."""
    images, i, seconds = noise, 20, 0.0
    if path.exists():
        with np.load(path) as kept:
            if not np.array_equal(kept["x_T"], noise.numpy()):
                raise SystemExit(f"{path}: is of other noise; use another --work")
            images, i, seconds = torch.from_numpy(kept["images"]), int(kept["i"]), float(kept["secs"])
    start = time.perf_counter() - seconds
    while i > 1:
        i -= 1
        t = i / 20
        # One step of ddim: its grid of two points is rescaled to the interval from t to t - 1/20.
        images = ddim(
            lambda x, _, t=t: machine(x, t), images, 2, lambda s, t=t: machine.noise(t if s else t - 0.05)
        )
        seconds = time.perf_counter() - start
        np.savez(path, images=images.numpy(), x_T=noise.numpy(), i=i, secs=seconds)
        print(f"exact: step {i} done after {seconds:.0f} s", flush=True)
    return images, seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images")
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--scales", default="3,7,15")
    parser.add_argument("--locality", default="cifar10-resnet-circular")
    parser.add_argument("-n", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=256)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)

    patchindex = Path(sys.executable).with_name("patchindex")
    store, drawn = work / "store.zarr", work / "topk"
    building = run_measured(
        [patchindex, "build", arguments.images, "-o", store]
        + ["--limit", arguments.limit, "--scales", arguments.scales, "--locality", arguments.locality]
    )
    sampling = run_measured(
        [patchindex, "sample", store, "-n", arguments.n, "-o", drawn, "--overwrite"]
        + ["--estimator", "topk", "--candidates", arguments.candidates]
    )
    index = pi.open_index(store)
    with np.load(drawn / "samples.npz") as samples:
        topk, noise = torch.from_numpy(samples["images"]), torch.from_numpy(samples["x_T"])
    steps = json.loads((drawn / "samples.json").read_text())["steps"]
    exact, exact_seconds = exact_images(pi.ScoreMachine(index, estimator="exact"), noise, work / "exact.npz")
    info = index.info()
    report = {
        "command": vars(arguments) | {"work": str(work)},
        "patches": {k: scale["patches"] for k, scale in info["indexes"].items()},
        "store_bytes": info["bytes"],
        "build_seconds": building.seconds,
        "build_peak_rssanon_mib": building.mebibytes,
        "sample_seconds": sampling.seconds,
        "sample_peak_rssanon_mib": sampling.mebibytes,
        "exact_seconds": exact_seconds,
        "captured_mass": {f"{s['t']:.2f}": s["captured_mass"] for s in steps},
        "pearson_r": pearson_r(topk, exact).tolist(),
        "r2": r2(topk, exact).tolist(),
        "rmse": rmse(topk, exact).tolist(),
    }
    (work / "topk_baseline.json").write_text(json.dumps(report, indent=2) + "\n")
    np.savez_compressed(work / "images.npz", topk=topk.numpy(), exact=exact.numpy(), x_T=noise.numpy())
    disk = info["bytes"] / 2**20
    print(f"build   {building.seconds:8.1f} s   RssAnon {building.mebibytes:7.0f} MiB   disk {disk:.0f} MiB")
    print(f"topk    {sampling.seconds:8.1f} s   RssAnon {sampling.mebibytes:7.0f} MiB")
    print(f"exact   {exact_seconds:8.1f} s")
    print("image     " + " ".join(f"{i:7d}" for i in range(arguments.n)))
    for name in ("pearson_r", "r2", "rmse"):
        print(f"{name:10}" + " ".join(f"{value:7.4f}" for value in report[name]))


if __name__ == "__main__":
    main()
