"""The truncated softmax against the exact score, whole trajectories from the same noise.

    python benchmarks/topk_baseline.py IMAGES --limit 2000 --scales 3,7,15 -n 8 --work DIR

builds a store in DIR, draws n images with `topk` and with `exact` from the noise of seed 0, and prints
times, the peak anonymous memory, and Pearson's r and R2 of each image; JSON goes to DIR/topk_baseline.json.
The exact trajectory takes long: it is kept in DIR/exact.npz after every step, and taken up from there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import torch

import patchindex as pi
from patchindex.sampling import ddim, draw_noise
from patchindex.study import pearson_r, r2, rmse


class PeakMemory:
    """Sample this process's anonymous resident memory while the block runs; `mebibytes` is the most seen."""

    def __enter__(self) -> PeakMemory:
        self.mebibytes, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    self.mebibytes = max(self.mebibytes, int(line.split()[1]) / 1024)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


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
    work, scales = arguments.work, [int(k) for k in arguments.scales.split(",")]
    work.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(work / "store.zarr", ignore_errors=True)

    source = pi.open_images(arguments.images, limit=arguments.limit)
    start = time.perf_counter()
    with PeakMemory() as building:
        index = pi.build_index(source, work / "store.zarr", scales, locality=arguments.locality)
    build_seconds = time.perf_counter() - start
    machine = pi.ScoreMachine(index, estimator="topk", candidates=arguments.candidates)
    noise = draw_noise(0, arguments.n, machine.shape)
    start = time.perf_counter()
    with PeakMemory() as sampling:
        result = pi.sample(machine, x_T=noise)
    sample_seconds = time.perf_counter() - start
    exact, exact_seconds = exact_images(pi.ScoreMachine(index, estimator="exact"), noise, work / "exact.npz")
    info = index.info()
    report = {
        "command": vars(arguments) | {"work": str(work)},
        "patches": {k: scale["patches"] for k, scale in info["indexes"].items()},
        "store_bytes": info["bytes"],
        "build_seconds": build_seconds,
        "build_peak_rssanon_mib": building.mebibytes,
        "sample_seconds": sample_seconds,
        "sample_peak_rssanon_mib": sampling.mebibytes,
        "exact_seconds": exact_seconds,
        "captured_mass": {f"{s['t']:.2f}": s["captured_mass"] for s in result.steps},
        "pearson_r": pearson_r(result.images, exact).tolist(),
        "r2": r2(result.images, exact).tolist(),
        "rmse": rmse(result.images, exact).tolist(),
    }
    (work / "topk_baseline.json").write_text(json.dumps(report, indent=2) + "\n")
    np.savez_compressed(
        work / "images.npz", topk=result.images.numpy(), exact=exact.numpy(), x_T=noise.numpy()
    )
    disk = info["bytes"] / 2**20
    print(f"build   {build_seconds:8.1f} s   RssAnon {building.mebibytes:7.0f} MiB   disk {disk:.0f} MiB")
    print(f"topk    {sample_seconds:8.1f} s   RssAnon {sampling.mebibytes:7.0f} MiB")
    print(f"exact   {exact_seconds:8.1f} s")
    print("image     " + " ".join(f"{i:7d}" for i in range(arguments.n)))
    for name in ("pearson_r", "r2", "rmse"):
        print(f"{name:10}" + " ".join(f"{value:7.4f}" for value in report[name]))


if __name__ == "__main__":
    main()
