r"""Building against plain FAISS: `index_factory`, train and add over unfolded patches.

    python benchmarks/against_faiss.py cifar10_train.npz --images 3000 --k 7 --work DIR

The same code size, numbers of lists and threads, in turn, several times. Of the 256 nearest patches (by all
pixels, in float32) of noisy windows at t = .3 it counts how many are in the lists that are probed, and how
many are among the 256 nearest by code: codes of FAISS are of what is left of a patch beside its centroid, and
ours of the patch. Ours trains on 40 patches a list, and FAISS on up to 256: `--training 256` has ours do so
as well.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from timing import table

import patchindex as pi
from patchindex.build import plan, train
from patchindex.geometry import gather_patches, query_windows
from patchindex.index import lists as module
from patchindex.runtime import require_faiss
from patchindex.schedules import cosine

NEAREST = 256


def plain(images: np.ndarray, k: int, dims: int, lists: int):  # type: ignore[no-untyped-def]
    """Return an index as the documentation of FAISS makes it."""
    faiss = require_faiss()
    windows = np.lib.stride_tricks.sliding_window_view(images, (k, k), axis=(1, 2))
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, k * k * images.shape[3])
    patches = patches.astype(np.float32) / 127.5 - 1
    index = faiss.index_factory(patches.shape[1], f"PCA{dims},IVF{lists},SQ8")
    index.train(patches)
    index.add(patches)
    return index


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--k", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--training", type=int, default=module.TRAINING_PATCHES_A_LIST)
    args = parser.parse_args()
    for each in (module, train, plan):
        each.TRAINING_PATCHES_A_LIST = args.training
    faiss = require_faiss()
    source = pi.open_images(args.source, limit=args.images)
    images, path = source[:], args.work / "ours.zarr"
    times: dict[str, list[float]] = {"ours": [], "FAISS": []}
    for _ in range(args.repeats):
        start = time.perf_counter()
        ours = pi.build_index(images, path, scales=[args.k], overwrite=True)
        times["ours"].append(time.perf_counter() - start)
        scale = ours.scale(args.k)
        lists, dims = scale.attributes["lists"], scale.attributes["pca_dims"]
        start = time.perf_counter()
        theirs = plain(images, args.k, dims, lists)
        times["FAISS"].append(time.perf_counter() - start)
    patches = scale.attributes["patches"]

    # Recall, of windows of images that are not in the index.
    beta = cosine(0.3)
    a = (1 - beta) ** 0.5
    clean = pi.open_images(args.source).read(np.arange(49_000, 49_002)).transpose(0, 3, 1, 2) / 127.5 - 1
    noise = np.random.default_rng(0).standard_normal(clean.shape)
    x = torch.from_numpy(a * clean + beta**0.5 * noise).float()
    rows = np.sort(np.random.default_rng(1).choice(x[:, 0].numel(), 256, replace=False))
    windows = (query_windows(x, scale.geometry)[rows] / a).flatten(1).numpy()
    flat = faiss.IndexFlatL2(windows.shape[1])
    for first in range(0, patches, 1 << 18):
        ids = torch.arange(first, min(first + (1 << 18), patches))
        flat.add(gather_patches(ours.pixels, scale.geometry, ids).flatten(1).numpy())
    truth = flat.search(windows, NEAREST)[1]
    vectors = (scale.pca.project_queries(x, scale.geometry, a)[rows] / a).numpy()
    classes = np.zeros(len(vectors), np.int64)

    ivf = faiss.downcast_index(faiss.extract_index_ivf(theirs))
    list_of = {name: np.empty(patches, np.int64) for name in ("ours", "FAISS")}
    for c, ids, _ in scale.members():
        list_of["ours"][ids] = c
    for c in range(ivf.nlist):
        list_of["FAISS"][faiss.rev_swig_ptr(ivf.invlists.get_ids(c), ivf.invlists.list_size(c))] = c
    turned = theirs.chain.at(0).apply(windows)
    out = []
    for probes in (8, 16, 32, 64):
        ivf.nprobe = probes
        near = scale.lists.nearest(vectors, classes, probes)
        for name, probed, found in (
            ("ours", near, scale.search(vectors, near, NEAREST, None)[1]),
            ("FAISS", ivf.quantizer.search(turned, probes)[1], theirs.search(windows, NEAREST)[1]),
        ):
            of = list_of[name]
            out.append(
                {
                    "probes": probes,
                    "index": name,
                    "patches": float(np.bincount(of)[probed].sum(1).mean()),
                    "in lists": _shared(of[truth], probed),
                    "by code": _shared(truth, found),
                }
            )
    threads = torch.get_num_threads()
    print(f"{patches} patches of {args.k} x {args.k}, codes of {dims}, {lists} lists, {threads} threads")
    for name, seconds in times.items():
        rate = patches / median(seconds)
        print(f"{name}: {', '.join(f'{s:.1f}' for s in seconds)} s; {rate:.0f} patches a second")
    ratios = [theirs / ours for theirs, ours in zip(times["FAISS"], times["ours"], strict=True)]
    print(f"FAISS / ours: {median(ratios):.1f}")
    print("patches looked through, and recall of the 256 nearest")
    print(table(out, {"probes": "d", "index": "s", "patches": ".0f", "in lists": ".4f", "by code": ".4f"}))


def _shared(wanted: np.ndarray, found: np.ndarray) -> float:
    """Return which share of what is wanted is in what was found, row by row."""
    return float(np.mean([np.isin(w, f).mean() for w, f in zip(wanted, found, strict=True)]))


if __name__ == "__main__":
    main()
