"""Make fashion_mnist_6k.npz: the first 600 training images of each Fashion-MNIST class, in file order.

Running it twice gives the same bytes (with the same numpy and zlib).

    apt install dataset-fashion-mnist
    python data/make_fashion_mnist_6k.py
"""

from __future__ import annotations

import argparse
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np

from patchindex.images import open_images

A_CLASS = 600
MAX_BYTES = 3_000_000


def main() -> None:
    """Read the IDX files, choose the images, write the .npz and print its size and sha256."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), metavar="DIR"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).with_name("fashion_mnist_6k.npz"), metavar="FILE"
    )
    args = parser.parse_args()

    source = open_images(args.source / "train-images-idx3-ubyte.gz")
    if source.labels is None:
        parser.error(f"{args.source}: train-labels-idx1-ubyte.gz is missing")
    labels = source.labels
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:A_CLASS] for c in range(10)]))
    arrays = {"images": source.read(chosen)[..., 0], "labels": labels[chosen].astype(np.uint8)}

    # np.savez_compressed writes the time of day into the zip, and deflates at level 6.
    with zipfile.ZipFile(args.out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for key, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, buffer.getvalue(), compresslevel=9)

    data = args.out.read_bytes()
    print(f"{args.out}: {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}")
    if len(data) > MAX_BYTES:
        raise SystemExit(f"{args.out}: larger than {MAX_BYTES} bytes")


if __name__ == "__main__":
    main()
