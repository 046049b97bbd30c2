r"""The bias of `priority`: its sums and means over many seeds against exact ones.

    patchindex build cifar10_train.npz -o STORE --limit 6250 --scales 3,7,13 --pca-dims 128 --no-calibrate
    python benchmarks/bias.py STORE --pixels 48 --json F

(Codes as large as they have to be for all of these noise levels: by default they are for those where a
schedule uses the scale.) At three noise levels and three scales, for some pixels of a training image with
noise: the mean of the denominator D and of the numerator N (all channels) over the seeds, less the exact one,
over its Monte Carlo error (`z`: rms 1 if there is no bias), and the rms bias of the mean N / D, corrected for
the Monte Carlo error that is left in it, also over the rms standard error of a single draw.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import table

import patchindex as pi
from patchindex.estimators.base import Data, Query
from patchindex.estimators.priority import draw
from patchindex.exact import scan
from patchindex.schedules import cosine

LEAST = 1e-4  # standard deviation over the seeds, of sums whose exact value is 1
ROUNDING = 1e-5  # of a mean in float32: against smaller standard errors there is no bias to speak of


def measure(
    store: pi.PatchIndex, t: float, k: int, pixels: np.ndarray, seeds: int, blocks: int, samples: int
) -> dict[str, Any]:
    """Draw with each seed, and compare with the exact sums."""
    beta = cosine(t)
    data = Data(
        store.training, store.machine, store.train_windows, store, torch.device("cpu"), memory=1 << 28
    )
    clean = torch.from_numpy(store.training.read(0, 1)).permute(0, 3, 1, 2) / 127.5 - 1
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    query = Query((1 - beta) ** 0.5 * clean + beta**0.5 * noise, (1 - beta) ** 0.5, beta, k)
    wanted = torch.zeros(clean.shape[2] * clean.shape[3], dtype=torch.bool)
    wanted[torch.from_numpy(pixels)] = True
    exact = scan(
        store.training, data.geometry(k), query.x, query.a, beta, dtype=torch.float64,
        pixels=wanted.reshape(1, *clean.shape[2:]),
    )  # fmt: skip
    sums, means, errors = [], [], []
    for seed in range(seeds):
        query_of = Query(query.x, query.a, beta, k, seed=seed)
        state = draw(data, query_of, pixels, blocks=blocks, samples=samples).state
        scale = (state.max_logit - exact.log_weight()).exp().unsqueeze(1)
        sums.append(torch.cat([state.weight.unsqueeze(1), state.centre], 1) * scale)
        means.append(state.mean())
        errors.append(state.stderr())
    truth = torch.cat([torch.ones(len(pixels), 1), exact.mean()], 1)
    drawn, mean = torch.stack(sums), torch.stack(means)
    z = (drawn.mean(0) - truth) / (drawn.std(0) / seeds**0.5)
    z[drawn.std(0) < LEAST] = float(
        "nan"
    )  # nothing was left to chance: what is off is the rounding of float32
    bias = (mean.mean(0) - exact.mean()).square() - mean.var(0) / seeds
    stderr = float(torch.stack(errors).square().mean().sqrt())
    off = float(bias.mean())
    off = math.copysign(abs(off) ** 0.5, off)
    return {
        "t": t,
        "k": k,
        "ess": float(exact.ess().median()),
        "z of D": float(z[:, 0].square().nanmean().sqrt()),
        "z of N": float(z[:, 1:].square().nanmean().sqrt()),
        "mean z": float(z[:, 0].nanmean()),
        "stderr": stderr,
        "bias": off,
        "bias / stderr": off / stderr if stderr > ROUNDING else math.nan,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--times", type=float, nargs="+", default=[0.2, 0.5, 0.8])
    parser.add_argument("--scales", type=int, nargs="+", default=[3, 7, 13])
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    store = pi.open_index(args.store)
    _, height, width = store.training.channels, *store.training.size
    pixels = np.sort(np.random.default_rng(0).choice(height * width, args.pixels, replace=False))
    print(f"{store}, {args.seeds} seeds, {args.blocks} blocks, {args.samples} samples, {args.pixels} pixels")
    rows = [
        measure(store, t, k, pixels, args.seeds, args.blocks, args.samples)
        for k in args.scales
        for t in args.times
    ]
    print(
        table(
            rows,
            dict.fromkeys(rows[0], ".2f")
            | {"k": "d", "ess": ".0f"}
            | dict.fromkeys(("stderr", "bias"), ".1e"),
        )
    )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
