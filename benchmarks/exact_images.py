r"""Exact images of a whole data set, kept so that approximations can be measured against them.

    python benchmarks/exact_images.py cifar10_train.npz -o DIR --locality cifar10-resnet-circular \
        --seeds 0 1 2 3

Each image is drawn by itself, from the first noise of its seed. Writes `NAME_finals.npz` (seeds, x_T, images)
and `NAME_trajectory.npz` (of the first seed: t, k, x, mean), and prints times and peak memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, watched

import patchindex as pi
from patchindex.exact import load_kernel


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--locality", required=True)
    parser.add_argument("--machine", default="ELS")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--name", default="cifar10_exact")
    args = parser.parse_args()
    images = pi.open_images(args.source).read(slice(0, args.limit))  # in memory once, as uint8
    machine = pi.ScoreMachine(images, machine=args.machine, locality=args.locality, estimator="exact")
    load_kernel()
    drawn: list[pi.SampleResult] = []
    taken: list[dict[str, Any]] = []  # of the first seed: t, k, x before the step, posterior mean

    def keep(step: dict[str, Any]) -> None:
        if not drawn:
            mean = step["estimate"].mean[0].numpy()
            taken.append({"t": step["t"], "k": machine.scale_at(step["t"]), "x": step["x"], "mean": mean})

    seconds = []
    with watched(0.2) as peak:
        for seed in args.seeds:
            drawn.append(pi.sample(machine, n=1, steps=args.steps, seed=seed, callback=keep))
            times = [step["seconds"] for step in drawn[-1].steps]
            seconds.append(round(sum(times), 1))
            print(f"seed {seed}: {seconds[-1]} s, by step {np.round(times, 1)}", flush=True)
    before = [drawn[0].x_T[0], *(step["x"][0] for step in taken[:-1])]
    settings = {
        "images": len(images),
        "settings": machine.settings,
        "steps": args.steps,
        "seconds": seconds,
        "threads": torch.get_num_threads(),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        args.output / f"{args.name}_finals.npz",
        seeds=np.array(args.seeds),
        x_T=np.stack([each.x_T[0].numpy() for each in drawn]),
        images=np.stack([each.images[0].numpy() for each in drawn]),
        settings=json.dumps(settings),
    )
    np.savez_compressed(
        args.output / f"{args.name}_trajectory.npz",
        seed=args.seeds[0],
        x=np.stack([x.numpy() for x in before]),
        **{name: np.array([step[name] for step in taken]) for name in ("t", "k", "mean")},
        settings=json.dumps(settings),
    )
    print(
        f"RssAnon: {peak.before:.0f} MiB before the first step, of which {images.nbytes >> 20} are images; "
        f"{peak.mebibytes:.0f} MiB at most"
    )


if __name__ == "__main__":
    main()
