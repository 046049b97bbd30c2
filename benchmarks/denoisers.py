r"""Seconds per image and step of every analytic denoiser, against the noise and the locality scale.

    python benchmarks/denoisers.py cifar10_train.npz --locality cifar10-resnet-circular --label 3
    python benchmarks/denoisers.py mnist_train.npz --resize 32 --locality mnist-resnet-zeros --denoisers pspc

`first` is the first call at a noise level, with the masks or the decomposition that it needs; `s` and `cpu s`
are the time and the processor time of a later call, per noisy image, medians of the rounds. On a busy machine
the processor time, with one thread, is the better figure. Noisy images are training images with noise.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from common import arguments, noisy, report, write_json
from torch import Tensor

import patchindex as pi
from patchindex.denoisers import DENOISERS, TrainingDenoiser, parse_denoiser, takes_locality
from patchindex.exact import load_kernel
from patchindex.runtime import threads

FORMATS = {
    "denoiser": "s",
    "t": ".2f",
    "beta": ".4f",
    "k": "d",
    "first": ".2f",
    "s": ".3f",
    "cpu s": ".3f",
    "ess": ".1f",
}


def time_call(denoiser: TrainingDenoiser, x: Tensor, t: float, repeats: int) -> dict[str, Any]:
    """Time a denoiser at one noise level."""
    start = time.perf_counter()
    estimate = denoiser.posterior_mean(x[:1], t)
    first = time.perf_counter() - start
    seconds, processor = [], []
    for _ in range(repeats):
        start, before = time.perf_counter(), time.process_time()
        estimate = denoiser.posterior_mean(x, t)
        seconds.append((time.perf_counter() - start) / len(x))
        processor.append((time.process_time() - before) / len(x))
    return {
        "t": t,
        "beta": denoiser.noise(t),
        "k": denoiser.scale_at(t),
        "first": first,
        "s": float(np.median(seconds)),
        "cpu s": float(np.median(processor)),
        "ess": float(estimate.ess.mean()),
    }


def main() -> None:
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--denoisers", nargs="+", default=sorted(DENOISERS), metavar="NAME[:OPTION=VALUE]")
    parser.add_argument("--locality", required=True)
    parser.add_argument("--resize", type=int)
    parser.add_argument("--limit", type=int, help="the first so many images")
    parser.add_argument("--label", type=int)
    parser.add_argument("--times", type=float, nargs="+", default=[0.05, 0.2, 0.5, 0.8, 0.95])
    parser.add_argument("-n", type=int, default=1, help="noisy images of a call")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    source = pi.open_images(args.source, resize=args.resize, limit=args.limit)
    images, labels = source.read(slice(None)), source.labels  # in memory once, as uint8
    load_kernel()
    rows = []
    with threads(args.threads):
        for text in args.denoisers:
            name, options = parse_denoiser(text)
            if takes_locality(name):
                options = {"locality": args.locality, **options}
            denoiser = pi.denoiser(name, images, labels, label=args.label, **options)
            for t in args.times:
                x = noisy(images[: args.n], t)
                rows.append({"denoiser": text, **time_call(denoiser, x, t, args.repeats)})
                print(f"{text} at t = {t}: {rows[-1]['s']:.3f} s", file=sys.stderr)
    count = len(images) if args.label is None else int((labels == args.label).sum())
    report(rows, FORMATS, f"{count} images of shape {images.shape[1:]}, {args.n} noisy images a call")
    write_json(args.json, images=count, shape=images.shape[1:], noisy_images=args.n, rows=rows)


if __name__ == "__main__":
    main()
