r"""The exact engines and `auto` on a GPU: golden cases, pairs of a pixel and a patch per second, images.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py cifar10_train.npz --authors CHECKOUT --store cifar.zarr --json gpu.json
    python benchmarks/gpu.py --dry-run          # tiny shapes on the CPU, kernels in Triton's interpreter

Needs numpy, torch, triton, numba and this package. A part that would begin after `--seconds` (440) is left
out. Each time is the median of three calls (of one for `large`), after one call that does not count; the
results are copied to the CPU within the time. Parts:

golden   every case of tests/golden_fashion.npz by each engine: the largest error over the largest value. The
         script fails at the end when an error is beyond the bounds of the tests
pairs    ELS, k = 3 to 17, 50 000 images of 32 x 32 x 3, one noisy image: pairs per second, beside the counted
         limit of the engine on the GPU (docs/gpu.md); the largest difference from float64 on fewer images
image    one image of 20 steps, all 50 000 images, with a published locality schedule
large    one step over 200 000 images of 64 x 64 x 3
auto     `auto` with a tolerance of 0.01 against exact scores: time, error, share of the patches
devices  one step on all GPUs of the machine
others   the plain way in torch, the authors' module (--authors), and top-k by FAISS on the GPU (--store)

Without IMAGES, training images are made of data/fashion_mnist_6k.npz: three images are the channels of one.
Images beyond those at hand are their shifts and mirror images.
"""

from __future__ import annotations

import argparse
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import plain_scan
import reference
import torch
from common import alternate, arguments, exact_mean, noisy, report, write_json
from gpu_limits import RATES, pairs_per_second
from torch import Tensor

import patchindex as pi
from patchindex.devices import memory_budget, resolve_devices
from patchindex.errors import InputError
from patchindex.exact import DeviceShards, ScoreRequest, check_engine
from patchindex.exact.request import WORKING_MEMORY
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages
from patchindex.runtime import faiss_gpus
from patchindex.schedules import LocalitySchedule, cosine

ROOT = Path(__file__).parent.parent
ENGINES = ("fused", "offsets")
BASE = 4096  # real images that the others are made of
T = 0.5


@dataclass(frozen=True)
class Sizes:
    """The sizes of the parts."""

    images: int = 50_000
    size: int = 32
    slow: int = 2_000  # images for slow ways, and for float64
    large: tuple[int, int] = (200_000, 64)
    scales: tuple[int, ...] = (3, 5, 7, 9, 11, 13, 15, 17)
    large_scales: tuple[int, ...] = (3, 15)
    batches: tuple[int, ...] = (1, 8)
    locality: str | tuple[int, ...] = "cifar10-resnet-circular"
    steps: int = 20
    auto_times: tuple[float, ...] = (0.2, 0.5, 0.8)
    repeats: int = 3


TINY = Sizes(80, 8, 8, (12, 10), (3, 5), (3,), (1, 2), (3,), 3, (0.5,), 1)


class Bench:
    """The settings of a run, its training images, and the clock."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.sizes = TINY if args.dry_run else Sizes()
        self.device = torch.device("cpu" if args.dry_run else args.device)
        self.authors, self.store, self.dry_run = args.authors, args.store, args.dry_run
        self.base = _real_images(args.source)
        self.end = time.perf_counter() + args.seconds
        self.memory = memory_budget([self.device], None, WORKING_MEMORY)
        name = "" if args.dry_run else torch.cuda.get_device_name(self.device)
        self.rates = next((rates for each, rates in RATES.items() if each in name), None)
        self.engines = []
        for engine in (*ENGINES, "cpu") if args.dry_run else ENGINES:
            try:
                check_engine(engine, self.device)
                self.engines.append(engine)
            except InputError as error:  # also a DeviceError
                print(f"{engine} cannot run: {error}")

    def training(self, n: int, size: int) -> TrainingImages:
        """Return n training images, made of the real ones."""
        return TrainingImages(made_of(self.base, n, size, self.device))

    def queries(self, training: TrainingImages, n: int = 1, t: float = T) -> Tensor:
        """Return the last n training images, mirrored top to bottom, with the noise of time t."""
        last = training.read(len(training) - n, len(training))[:, ::-1]
        return noisy(np.ascontiguousarray(last), t).to(self.device)

    def mean(self, training: TrainingImages, k: int, x: Tensor, t: float = T, **settings: Any) -> Tensor:
        """Return the exact posterior mean of ELS, (B, C, H, W), on the CPU."""
        geometry = Geometry.of("ELS", k, training.size, "valid")
        found = exact_mean(training, geometry, x, cosine(t), memory=self.memory, **settings)
        return found.movedim(-1, 1).cpu()

    def seconds(self, way: Callable[[], Any], repeats: int | None = None) -> tuple[float, Any]:
        """Return the median time of a way, and its last result."""
        times = alternate({"way": way}, repeats or self.sizes.repeats)
        return times.median("way"), times.results["way"]

    def over(self) -> bool:
        """Return whether no time is left for another part."""
        return time.perf_counter() > self.end


def _real_images(source: Path | None) -> np.ndarray:
    if source is not None:
        return pi.open_images(source)[:BASE]
    with np.load(ROOT / "data" / "fashion_mnist_6k.npz") as archive:
        grey = archive["images"][:BASE]
    return np.stack([np.roll(grey, 37 * c, 0) for c in range(3)], -1)


def made_of(base: np.ndarray, n: int, size: int, device: torch.device) -> np.ndarray:
    """Return n images of size x size: the base images, resized, then their shifts and mirror images."""
    images = torch.from_numpy(base).permute(0, 3, 1, 2).to(device, torch.float32)
    images = torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
    images = images.round().to(torch.uint8).permute(0, 2, 3, 1)
    made = []
    for i in range(0, n, len(images)):
        turn = i // len(images)
        some = images.roll((turn % 5, turn // 5 % 5), (1, 2))
        made.append(some.flip(2) if turn % 2 else some)
    return torch.cat(made)[:n].cpu().numpy()


def pairs_of(training: TrainingImages, k: int) -> int:
    """Return the pairs of a pixel and a patch of ELS with valid windows, for one noisy image."""
    height, width = training.size
    return len(training) * height * width * (height - k + 1) * (width - k + 1)


def golden(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield the largest error of each engine and machine over the golden cases, at low and other noise."""
    with np.load(ROOT / "tests" / "golden_fashion.npz") as archive:
        cases = {key: archive[key] for key in archive.files}
    for engine in bench.engines:
        for name in np.unique(cases["machine"]).tolist():
            kind, _, wrapped = name.partition("-")
            machine = pi.ScoreMachine(
                cases["images"], cases["labels"], machine=kind, train_windows=wrapped or None,
                estimator="exact", engine=engine, device=bench.device,
            )  # fmt: skip
            errors: dict[bool, list[float]] = {True: [0.0], False: [0.0]}
            numbers = np.flatnonzero(cases["machine"] == name)
            for i in numbers[[0, -1]] if bench.dry_run else numbers:
                t, k, label = (cases[key][i].item() for key in ("t", "k", "label"))
                x, expected = torch.from_numpy(cases["x"][i : i + 1]), cases["posterior_mean"][i]
                mean = machine.posterior_mean(x, t, k=k or None, label=None if label < 0 else label).mean
                error = np.abs(mean[0].cpu().numpy() - expected).max() / np.abs(expected).max()
                errors[t < 0.3].append(float(error))
            low, other = max(errors[True]), max(errors[False])
            yield {"engine": engine, "machine": name, "t = 0.05": low, "t >= 0.3": other, "bounds kept":
                   str(low < 5e-4 and other < 2e-5)}  # fmt: skip


def pairs(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield pairs per second of each engine and scale."""
    sizes = bench.sizes
    for engine in bench.engines:
        n = sizes.images if engine == "fused" else sizes.slow
        training, few = bench.training(n, sizes.size), bench.training(min(n, sizes.slow), sizes.size)
        for k in sizes.scales:
            x = bench.queries(training)
            seconds, _ = bench.seconds(partial(bench.mean, training, k, x, engine=engine))
            exact = bench.mean(few, k, x, dtype=torch.float64)
            off = float((bench.mean(few, k, x, engine=engine) - exact).abs().max())
            yield _row(bench, engine, training, k, seconds) | {"off": off}
            if bench.over():
                return


def _row(bench: Bench, engine: str, training: TrainingImages, k: int, seconds: float) -> dict[str, Any]:
    rate = pairs_of(training, k) / seconds
    limit = None
    if bench.rates is not None:
        size = training.size[0]
        limit = pairs_per_second(bench.rates, engine, k, training.channels, size, size**2)
    return {
        "engine": engine, "images": len(training), "size": training.size[0], "k": k, "ms": 1e3 * seconds,
        "pairs/s": rate, "limit": limit, "limit / pairs/s": None if limit is None else limit / rate,
    }  # fmt: skip


def image(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield the time of one whole image, drawn alone and in a batch of eight."""
    sizes = bench.sizes
    training = bench.training(sizes.images, sizes.size)
    for engine in bench.engines[:1]:
        machine = pi.ScoreMachine(
            training.source, estimator="exact", engine=engine, device=bench.device, locality=sizes.locality
        )
        schedule, size = LocalitySchedule.of(sizes.locality), sizes.size
        times = [i / sizes.steps for i in range(sizes.steps - 1, 0, -1)]
        for n in sizes.batches:
            seconds, _ = bench.seconds(
                lambda machine=machine, n=n: pi.sample(machine, n=n, steps=sizes.steps).images.cpu()
            )
            row = {"engine": engine, "images": sizes.images, "batch": n, "s an image": seconds / n}
            if bench.rates is not None:
                row["limit s"] = sum(
                    pairs_of(training, k)
                    / (
                        pairs_per_second(bench.rates, engine, k, training.channels, size, n * size**2)
                        or math.nan
                    )
                    for k in (schedule.k(cosine(t)) for t in times)
                )
            yield row
            if bench.over():
                return


def large(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield the time of a step over many larger images."""
    training = bench.training(*bench.sizes.large)
    for k in bench.sizes.large_scales:
        for engine in bench.engines[:1]:
            way = partial(bench.mean, training, k, bench.queries(training), engine=engine)
            seconds, _ = bench.seconds(way, repeats=1)
            yield _row(bench, engine, training, k, seconds)
            if bench.over():
                return


def auto(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield time, error and cost of `auto` without an index against exact scores."""
    sizes = bench.sizes
    training = bench.training(sizes.images, sizes.size)
    schedule, tolerance = LocalitySchedule.of(sizes.locality), 0.01
    ways = {
        name: pi.ScoreMachine(training.source, estimator=name, device=bench.device, **options)
        for name, options in {"exact": {}, "auto": {"tolerance": tolerance}}.items()
    }
    for t in sizes.auto_times:
        x, k = bench.queries(training, t=t), schedule.k(cosine(t))

        def estimate(way: str, x: Tensor = x, t: float = t, k: int = k) -> tuple[pi.Estimate, Tensor]:
            e = ways[way].posterior_mean(x, t, k=k)
            return e, e.mean.cpu()

        (exact_s, (whole, exact)), (auto_s, (e, mean)) = (bench.seconds(partial(estimate, w)) for w in ways)
        error, stderr = (mean - exact).square().mean(1).sqrt(), e.stderr.cpu()
        yield {
            "t": t, "k": k, "exact ms": 1e3 * exact_s, "auto ms": 1e3 * auto_s,
            "rms error": float(error.square().mean().sqrt()),
            "rms stderr": float(stderr.square().mean().sqrt()),
            "beyond 2 stderr": float((error > 2 * stderr + 1e-5).float().mean()),
            "beyond tolerance": float((error > tolerance).float().mean()),
            "share of patches": e.patches_evaluated / whole.patches_evaluated,
        }  # fmt: skip
        if bench.over():
            return


def devices(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield the time of a step on one GPU and on all."""
    every = resolve_devices("cpu,cpu" if bench.dry_run else "cuda:all")
    if len(every) < 2:
        return
    training = bench.training(bench.sizes.images, bench.sizes.size)
    x, k = bench.queries(training), bench.sizes.scales[-1]
    geometry = Geometry.of("ELS", k, training.size, "valid")
    request = ScoreRequest(training, geometry, x, cosine(T), memory=bench.memory)
    one, _ = bench.seconds(partial(bench.mean, training, k, x))
    shards = DeviceShards(every)
    several, _ = bench.seconds(lambda: shards.scan(request).mean().cpu())
    yield {"GPUs": len(every), "k": k, "one ms": 1e3 * one, "all ms": 1e3 * several, "ratio": one / several}


def others(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield pairs per second of ways that are not this package's engines."""
    sizes, device = bench.sizes, bench.device
    training = bench.training(sizes.slow, sizes.size)
    images, x, beta = training.read(0, len(training)), bench.queries(training), cosine(T)
    a = (1 - beta) ** 0.5
    module = None if bench.authors is None else reference.load(bench.authors)
    theirs = None if module is None else reference.Reference(module, "ELS", images, device)
    plain_scan.CHUNK = 1 << 16  # a GPU wants large products
    for k in (sizes.scales[0], sizes.scales[-1]):
        geometry = Geometry.of("ELS", k, training.size, "valid")
        there = torch.from_numpy(images).to(device)
        ours_s, ours = bench.seconds(partial(bench.mean, training, k, x, engine=bench.engines[0]))
        ways: dict[str, Callable[[], Tensor]] = {
            "plain": partial(plain_scan.posterior_mean, there, x, geometry, a, beta)
        }
        if theirs is not None:
            ways["authors"] = partial(theirs.posterior_mean, x, T, k, a, beta)
        for name, way in ways.items():
            with device:  # new tensors of these ways
                seconds, mean = bench.seconds(lambda way=way: way().cpu())
            off = float((mean - ours).abs().max())
            yield _row(bench, name, training, k, seconds) | {"off": off, "time / ours": seconds / ours_s}
    if bench.store is not None and faiss_gpus():
        index = pi.open_index(bench.store, device=device)
        machine = pi.ScoreMachine(index, estimator="topk", device=device)
        x = noisy(index.training.read(0, 1), T).to(device)
        for k in index.scales:
            seconds, _ = bench.seconds(lambda k=k: machine.posterior_mean(x, T, k=k).mean.cpu())
            yield {"engine": "topk by FAISS", "images": len(index.training), "k": k, "ms": 1e3 * seconds}


PARTS: dict[str, tuple[Callable[[Bench], Iterator[dict[str, Any]]], dict[str, str]]] = {
    "golden": (golden, {"engine": "s", "machine": "s", "t = 0.05": ".1e", "t >= 0.3": ".1e",
                        "bounds kept": "s"}),
    "pairs": (pairs, {"engine": "s", "images": "d", "size": "d", "k": "d", "ms": ".1f", "pairs/s": ".2e",
                      "limit": ".2e", "limit / pairs/s": ".1f", "off": ".1e"}),
    "image": (image, {"engine": "s", "images": "d", "batch": "d", "s an image": ".2f", "limit s": ".2f"}),
    "large": (large, {"engine": "s", "images": "d", "size": "d", "k": "d", "ms": ".0f", "pairs/s": ".2e",
                      "limit": ".2e", "limit / pairs/s": ".1f"}),
    "auto": (auto, {"t": ".2f", "k": "d", "exact ms": ".1f", "auto ms": ".1f", "rms error": ".4f",
                    "rms stderr": ".4f", "beyond 2 stderr": ".3f", "beyond tolerance": ".3f",
                    "share of patches": ".3f"}),
    "devices": (devices, {"GPUs": "d", "k": "d", "one ms": ".1f", "all ms": ".1f", "ratio": ".2f"}),
    "others": (others, {"engine": "s", "images": "d", "size": "d", "k": "d", "ms": ".1f", "pairs/s": ".2e",
                        "off": ".1e", "time / ours": ".1f"}),
}  # fmt: skip


def about(bench: Bench) -> dict[str, Any]:
    """Return the GPU, the versions and the date."""
    found = {"date": time.strftime("%Y-%m-%d"), "torch": torch.__version__, "engines": bench.engines}
    if bench.device.type == "cuda":
        properties = torch.cuda.get_device_properties(bench.device)
        found |= {
            "device": properties.name, "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "GiB": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda,
        }  # fmt: skip
    try:
        import triton
    except ImportError:
        return found
    return found | {"triton": triton.__version__}


def main() -> None:
    parser = arguments(__doc__, source=False)
    parser.add_argument("source", metavar="IMAGES", type=Path, nargs="?")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=440, help="no part begins later (default 440)")
    parser.add_argument("--authors", type=Path, metavar="DIR", help="a checkout of the authors' repository")
    parser.add_argument("--store", metavar="STORE", help="a store whose lists FAISS searches on the GPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    if args.dry_run:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported
    bench = Bench(args)
    found: dict[str, Any] = {"about": about(bench), "parts": {}}
    print(", ".join(f"{name} {value}" for name, value in found["about"].items()))
    failed: list[str] = []
    for name in args.parts:
        if bench.over():
            print(f"\n{name}: left out, no time is left")
            continue
        start = time.perf_counter()
        part, forms = PARTS[name]
        rows: list[dict[str, Any]] = []
        try:
            rows.extend(part(bench))
        except Exception:  # the GPU may be lent for minutes: the other parts are worth having
            traceback.print_exc()
            failed.append(name)
        found["parts"][name] = rows
        if rows:
            report(rows, forms, f"{name}, {time.perf_counter() - start:.0f} s")
        write_json(args.json, **found)
    if not all(row["bounds kept"] == "True" for row in found["parts"].get("golden", [])):
        failed.append("bounds of the golden cases")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
