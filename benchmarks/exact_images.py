r"""Exact images of a whole data set, kept so that approximations can be measured against them.

    python benchmarks/exact_images.py cifar10_train.npz --locality cifar10-resnet-circular \
        --seeds 0 1 2 3 --work DIR

Each image is drawn by itself, from the first noise of its seed. Posterior means are written to a checkpoint
after every step; run again, it goes on from there. At the end `<name>_finals.npz` (seeds, x_T, images) and
`<name>_trajectory.npz` (of the first seed: t, k, x, mean) are written, and a table printed.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import torch
from peak import anonymous_mebibytes

import patchindex as pi
from patchindex.exact import load_kernel
from patchindex.sampling.samplers import ddim, draw_noise


class Trajectory:
    """One image's steps, with those that an earlier run computed."""

    def __init__(self, machine: pi.ScoreMachine, seed: int, steps: int, path: Path) -> None:
        self.machine, self.path, self.steps = machine, path, steps
        self.settings = json.dumps([len(machine.training), steps, seed, machine.settings])
        self.x_T = draw_noise(seed, 1, machine.shape)
        self.x: list[np.ndarray] = []
        self.t: list[float] = []
        self.mean: list[np.ndarray] = []
        self.seconds: list[float] = []
        if path.exists():
            with np.load(path) as archive:
                if str(archive["settings"]) != self.settings:
                    raise SystemExit(f"{path}: of another run; use another --work")
                self.mean = list(archive["mean"])
                self.seconds = archive["seconds"].tolist()

    def _score(self, x: torch.Tensor, t: float) -> torch.Tensor:
        step = len(self.t)
        if step == len(self.mean):
            start = time.perf_counter()
            self.mean.append(self.machine.posterior_mean(x, t).mean[0].numpy())
            self.seconds.append(time.perf_counter() - start)
            part = self.path.with_suffix(".part.npz")
            np.savez(
                part,
                mean=np.stack(self.mean),
                seconds=np.array(self.seconds),
                settings=self.settings,
            )
            os.replace(part, self.path)
        self.x.append(x[0].numpy())
        self.t.append(t)
        return self.machine.score_of(torch.from_numpy(self.mean[step])[None], x, t)

    def draw(self) -> np.ndarray:
        """Take the steps that are missing; return the final image."""
        return ddim(self._score, self.x_T, self.steps, self.machine.noise)[0].numpy()


def watch(peak: list[float], stop: threading.Event) -> None:
    while not stop.wait(0.2):
        peak[0] = max(peak[0], anonymous_mebibytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--locality", required=True)
    parser.add_argument("--machine", default="ELS")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--name", default="cifar10_exact")
    args = parser.parse_args()
    images = pi.open_images(args.images).read(slice(0, args.limit))  # in memory once, as uint8
    machine = pi.ScoreMachine(images, machine=args.machine, locality=args.locality, estimator="exact")
    for folder in (args.work, args.output):
        folder.mkdir(parents=True, exist_ok=True)
    load_kernel()
    before = anonymous_mebibytes()
    peak, stop = [0.0], threading.Event()
    watcher = threading.Thread(target=watch, args=(peak, stop), daemon=True)
    watcher.start()
    finals, drawn = [], []
    for seed in args.seeds:
        trajectory = Trajectory(machine, seed, args.steps, args.work / f"{args.name}_{seed}.npz")
        finals.append(trajectory.draw())
        drawn.append(trajectory)
        print(
            f"seed {seed}: {sum(trajectory.seconds):.1f} s, by step {np.round(trajectory.seconds, 1)}",
            flush=True,
        )
    stop.set()
    settings = {
        "images": len(images),
        "settings": machine.settings,
        "steps": args.steps,
        "seconds": [round(sum(t.seconds), 1) for t in drawn],
        "threads": torch.get_num_threads(),
    }
    np.savez_compressed(
        args.output / f"{args.name}_finals.npz",
        seeds=np.array(args.seeds),
        x_T=np.stack([t.x_T[0].numpy() for t in drawn]),
        images=np.stack(finals),
        settings=json.dumps(settings),
    )
    first = drawn[0]
    np.savez_compressed(
        args.output / f"{args.name}_trajectory.npz",
        seed=args.seeds[0],
        t=np.array(first.t),
        k=np.array([machine.scale_at(t) for t in first.t]),
        x=np.stack(first.x),
        mean=np.stack(first.mean),
        settings=json.dumps(settings),
    )
    print(json.dumps(settings))
    print(
        f"RssAnon: {before:.0f} MiB before the first step, of which {images.nbytes >> 20} are the images; "
        f"{peak[0]:.0f} MiB at most"
    )


if __name__ == "__main__":
    main()
