r"""`auto` without an index: its errors against its standard errors, and the patches that it needs.

    python benchmarks/sampled_auto.py cifar10_train.npz --limit 16384 --json sampled.json

For each time, noisy images (two training images and two others) are compared with all images, group by group,
once. Random orders of the groups then give many samples, from which pixels leave by two rules: by the spread
of the groups alone, and with the allowance for patches that were not drawn, as `auto` does. Errors are root
mean square over channels. Columns, over pixels and orders:

patches     patches evaluated / all patches
exact       share of pixels that are exact in the end
rms / tol   root mean square error / tolerance
rms / SE    root mean square error / root mean square standard error, of pixels that left before the end
> 2 SE      share of these pixels whose error exceeds two standard errors by a tenth of the tolerance
> 3 tol     share of pixels whose error exceeds three tolerances
worst       largest error / tolerance
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from common import arguments, noisy, report, write_json
from torch import Tensor

import patchindex as pi
from patchindex.estimators import sampled
from patchindex.exact import ScoreRequest, load_kernel, scan_parts
from patchindex.exact.groups import GroupSums
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages
from patchindex.schedules import LocalitySchedule, cosine
from patchindex.softmax import SoftmaxState

FORMS = {"t": ".2f", "k": "d", "rule": "s", "patches": ".3f", "exact": ".3f", "rms / tol": ".2f"}
FORMS |= {"rms / SE": ".2f", "> 2 SE": ".4f", "> 3 tol": ".4f", "worst": ".1f"}
RULES = {"spread": False, "allowance": True}


def draw(groups: SoftmaxState, ends: list[int], tolerance: float, allowance: bool) -> tuple[Tensor, ...]:
    """Return the mean, standard error and share of each pixel; `ends` are images by number of groups."""
    pixels, channels = groups.centre.shape[1:]
    sums, left = GroupSums.empty(pixels, channels, torch.device("cpu")), torch.arange(pixels)
    mean, stderr, shares = torch.zeros(pixels, channels).double(), *torch.zeros(2, pixels).double()
    done, ahead, total = 0, sampled.FIRST, len(ends) - 1
    while len(left):
        sums.add(groups[done:ahead][:, left])
        done, share = ahead, ends[ahead] / ends[-1]
        state = sums.state(share)
        variance = state.mean_variance().mean(-1) + (sums.allowance(share) if allowance else 0)
        relative = state.variance[:, 0].clamp_min(0).sqrt() / state.weight
        enough = (variance <= tolerance**2) & (relative <= sampled.LARGEST_RELATIVE) | (share == 1)
        mean[left[enough]], shares[left[enough]] = state.mean()[enough], share
        stderr[left[enough]] = variance[enough].sqrt() if share < 1 else 0.0
        left, sums = left[~enough], sums.restrict(~enough)
        ahead = min(total, int(np.ceil(done * sampled.GROWTH)))
    return mean, stderr, shares


def measure(args: Any, t: float, x: Tensor, training: TrainingImages, k: int) -> list[dict[str, Any]]:
    """Return the rows of a time: one for each rule."""
    n = len(training)
    size = max(sampled.LEAST, -(-n // sampled.GROUPS))
    order = np.random.default_rng(1).permutation(n)
    bounds = [*range(0, n, size), n]
    geometry = Geometry.of("ELS", k, training.size)
    request = ScoreRequest(training.select(order), geometry, x, cosine(t))
    parts = [
        scan_parts(request, bounds[i : i + 33]).reshape((-1, x[:, 0].numel()))
        for i in range(0, len(bounds) - 1, 32)
    ]
    groups = SoftmaxState.cat(parts)
    truth = groups.reduce(0).mean()
    rows = []
    for rule, allowance in RULES.items():
        errors, stderrs, shares = [], [], []
        for seed in range(args.orders):
            of = np.random.default_rng(seed).permutation(len(bounds) - 1)
            ends = [0, *np.cumsum(np.diff(bounds)[of]).tolist()]
            mean, stderr, share = draw(groups[torch.from_numpy(of)], ends, args.tolerance, allowance)
            errors.append((mean - truth).square().mean(1).sqrt())
            stderrs.append(stderr)
            shares.append(share)
        error, stderr, share = (torch.cat(each) for each in (errors, stderrs, shares))
        early, rms = share < 1, error.square().mean().sqrt()
        rms_early, rms_stderr = (each[early].square().mean().sqrt() for each in (error, stderr))
        rows.append(
            {
                "t": t,
                "k": k,
                "rule": rule,
                "patches": float(share.mean()),
                "exact": float((~early).double().mean()),
                "rms / tol": float(rms / args.tolerance),
                "rms / SE": float(rms_early / rms_stderr),
                "> 2 SE": float((error > 2 * stderr + args.tolerance / 10)[early].double().mean()),
                "> 3 tol": float((error > 3 * args.tolerance).double().mean()),
                "worst": float(error.max() / args.tolerance),
            }
        )
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--limit", type=int, default=4096, help="training images (default 4096)")
    parser.add_argument("--locality", default="cifar10-resnet-circular")
    parser.add_argument("--times", type=float, nargs="+", default=[0.95, 0.8, 0.65, 0.5, 0.35, 0.2, 0.05])
    parser.add_argument("--tolerance", type=float, default=0.01)
    parser.add_argument("--orders", type=int, default=8, help="random orders of the groups (default 8)")
    args = parser.parse_args()
    source = pi.open_images(args.source)
    order = np.random.default_rng(0).permutation(len(source))
    images, others = source.read(order[: args.limit]), source.read(order[-2:])
    schedule = LocalitySchedule.of(args.locality)
    load_kernel()
    training, rows = TrainingImages(images), []
    for t in args.times:
        x = noisy(np.concatenate([images[:2], others]), t)
        rows += measure(args, t, x, training, schedule.k(cosine(t)))
        report(rows[-len(RULES) :], FORMS)
    report(rows, FORMS, f"{len(images)} images, tolerance {args.tolerance}, {args.orders} orders")
    write_json(args.json, rows=rows, images=len(images), tolerance=args.tolerance, orders=args.orders)


if __name__ == "__main__":
    main()
