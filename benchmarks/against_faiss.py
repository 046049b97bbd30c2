r"""Building against plain FAISS: `index_factory`, train and add over unfolded patches.

    python benchmarks/against_faiss.py cifar10_train.npz --images 3000 --k 7 --work DIR

Both have the same code size and the same numbers of lists and threads, and are built in turn. Recall is over
the 256 nearest patches (by all pixels, in float32) of noisy windows at t = .3: the share in the lists that
are probed, and the share among the 256 nearest by code. FAISS encodes the difference between a patch and its
centroid; we encode the patch. Our lists train on 40 patches each, FAISS's lists on up to 256: `--training
256` gives ours as many.
"""

from __future__ import annotations

import numpy as np
import torch
from common import alternate, arguments, noisy, report, write_json

import patchindex as pi
from patchindex.build import plan, train
from patchindex.geometry import gather_patches, query_windows
from patchindex.index import lists as module
from patchindex.runtime import require_faiss
from patchindex.schedules import cosine

NEAREST = 256


def plain(images: np.ndarray, k: int, dims: int, lists: int):  # type: ignore[no-untyped-def]
    """Build an index as the documentation of FAISS does."""
    faiss = require_faiss()
    windows = np.lib.stride_tricks.sliding_window_view(images, (k, k), axis=(1, 2))
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, k * k * images.shape[3])
    patches = patches.astype(np.float32) / 127.5 - 1
    index = faiss.index_factory(patches.shape[1], f"PCA{dims},IVF{lists},SQ8")
    index.train(patches)
    index.add(patches)
    return index


def main() -> None:
    parser = arguments(__doc__, work=True, repeats=3)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--k", type=int, default=7)
    parser.add_argument("--training", type=int, default=module.TRAINING_PATCHES_PER_LIST)
    args = parser.parse_args()
    for each in (module, train, plan):
        each.TRAINING_PATCHES_PER_LIST = args.training
    faiss = require_faiss()
    source = pi.open_images(args.source, limit=args.images)
    images, path = source[:], args.work / "ours.zarr"

    def ours() -> pi.PatchIndex:
        return pi.build_index(images, path, scales=[args.k], overwrite=True)

    scale = ours().scale(args.k)
    lists, dims, patches = (scale.attributes[name] for name in ("lists", "pca_dims", "patches"))
    times = alternate({"ours": ours, "FAISS": lambda: plain(images, args.k, dims, lists)}, args.repeats)
    store, theirs = times.results["ours"], times.results["FAISS"]
    scale = store.scale(args.k)

    # Recall, of windows of images that are not in the index.
    a = (1 - cosine(0.3)) ** 0.5
    x = noisy(pi.open_images(args.source)[-2:], 0.3)
    rows = np.sort(np.random.default_rng(1).choice(x[:, 0].numel(), 256, replace=False))
    windows = (query_windows(x, scale.geometry)[rows] / a).flatten(1).numpy()
    flat = faiss.IndexFlatL2(windows.shape[1])
    for first in range(0, patches, 1 << 18):
        ids = torch.arange(first, min(first + (1 << 18), patches))
        flat.add(gather_patches(store.pixels, scale.geometry, ids).flatten(1).numpy())
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
    print(f"{patches} patches of {args.k} x {args.k}, codes of {dims}, {lists} lists")
    for name, seconds in times.seconds.items():
        rate = patches / times.median(name)
        print(f"{name}: {', '.join(f'{s:.1f}' for s in seconds)} s; {rate:.0f} patches per second")
    print(f"FAISS / ours: {times.ratio('FAISS', 'ours'):.1f}")
    forms = {"probes": "d", "index": "s", "patches": ".0f", "in lists": ".4f", "by code": ".4f"}
    report(out, forms, "patches scanned per query, and recall of the 256 nearest")
    write_json(args.json, rows=out, seconds={name: s.tolist() for name, s in times.seconds.items()})


def _shared(wanted: np.ndarray, found: np.ndarray) -> float:
    """Return the share of `wanted` that is in `found`, averaged over rows."""
    return float(np.mean([np.isin(w, f).mean() for w, f in zip(wanted, found, strict=True)]))


if __name__ == "__main__":
    main()
