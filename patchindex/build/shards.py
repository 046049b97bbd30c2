"""Shards: encoded patches of a range of images, sorted by inverted list, before they are merged.

A shard is one file with a checksum, written atomically, so any process can make a shard, and a resumed build
can tell complete shards from missing ones. Merging holds some neighbouring lists of all shards in memory, or
a part of one list: when many patches are alike, most are in one list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from patchindex.build.merge import Bucket
from patchindex.build.workdir import GO_ON
from patchindex.errors import Option, StoreError
from patchindex.index.scale import ScaleIndex
from patchindex.kernels.by_list import put_records, take_records
from patchindex.store.atomic import atomic_write
from patchindex.store.checksums import CHECKSUM_OF_CHECKED, checksum_of_file
from patchindex.store.raw import CHECKSUM_BYTES, ChecksumWriter

__all__ = ["OldLists", "Shards", "shard_bytes"]

SHARD_BYTES = 64 << 20
PIECE_BYTES = 64 << 10  # least bytes of a shard in a bucket: disks are slow with smaller reads

Members = tuple[np.ndarray, np.ndarray]  # patch ids, int64 (n,), and codes, uint8 (n, code bytes)


def shard_bytes(total: int) -> int:
    """Return the size of shards and buckets for a scale of `total` bytes: 64 MiB, or more beyond 64 GiB."""
    return max(SHARD_BYTES, math.isqrt(total * PIECE_BYTES))


class OldLists:
    """The lists of a scale that is encoded already, with the numbers of its images in the new store."""

    def __init__(self, scale: ScaleIndex, images: np.ndarray) -> None:
        self.scale, self.images = scale, images

    def sizes(self) -> np.ndarray:
        """Return the number of patches in each list: int64, shape (lists,)."""
        return self.scale.list_sizes()

    def part(self, c: int, start: int, stop: int) -> Members:
        """Return members [start, stop) of list c; their ids ascend."""
        ids, codes = self.scale.part(c, start, stop)
        image, position = np.divmod(ids, self.scale.geometry.patches_per_image)
        return self.images[image] * self.scale.geometry.patches_per_image + position, codes


class Shards:
    """The shards of one scale, in a folder of their own.

    `images` are the numbers of the shards' images, int (n,), ascending; `old` has the patches of all other
    images. Patch ids are `image * patches_per_image + position`. `go_on` says in a remedy how the caller
    continues.
    """

    def __init__(
        self,
        folder: Path,
        lists: int,
        code_bytes: int,
        images: np.ndarray,
        patches_per_image: int,
        old: OldLists | None = None,
        go_on: Sequence[str | Option] = GO_ON,
    ) -> None:
        self._folder, self._lists, self._old, self._go_on = folder, lists, old, go_on
        self._images, self._per_image = images, patches_per_image
        self._record = np.dtype([("id", "<i8"), ("code", "u1", (code_bytes,))])
        self._code_bytes = code_bytes
        image_bytes = patches_per_image * self._record.itemsize
        n = len(images)
        self._bytes = shard_bytes(n * image_bytes)
        self._bounds = [*range(0, n, max(1, self._bytes // image_bytes)), n]
        # A shard file: the seconds that encoding took, the size of each list, the records, a checksum.
        self._head = np.dtype([("seconds", "<f8"), ("sizes", "<i4", (lists,))])

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def images(self, i: int) -> tuple[int, int]:
        """Return the range [start, stop) of images whose patches shard i holds."""
        return self._bounds[i], self._bounds[i + 1]

    def _path(self, i: int) -> Path:
        return self._folder / f"{i:06d}"

    def missing(self) -> list[int]:
        """Return the shards that are missing or damaged."""
        return [i for i in range(len(self)) if not self._is_intact(i)]

    def _is_intact(self, i: int) -> bool:
        start, stop = self.images(i)
        size = self._head.itemsize + (stop - start) * self._per_image * self._record.itemsize + CHECKSUM_BYTES
        path = self._path(i)
        return (
            path.is_file() and path.stat().st_size == size and checksum_of_file(path) == CHECKSUM_OF_CHECKED
        )

    def write(self, i: int, lists: np.ndarray, codes: np.ndarray, seconds: float) -> None:
        """Write shard i: lists, int (n,), and codes, uint8 (n, code_bytes), of its patches in order of ids.

        Raises FileNotFoundError when the scale is not trained yet, or is merged already.
        """
        start, stop = self.images(i)
        lists = lists.astype(np.int64)
        ids = self._images[start:stop, None] * self._per_image + np.arange(self._per_image)
        sizes = np.bincount(lists, minlength=self._lists)
        records = np.empty(len(lists), self._record)
        # The kernel checks no bounds: the new shapes do.
        ids, codes = ids.reshape(len(lists)), codes.reshape(len(lists), self._code_bytes)
        put_records(lists, ids, codes, np.cumsum(sizes) - sizes, records.view(np.uint8))
        head = np.zeros(1, self._head)
        head["seconds"], head["sizes"] = seconds, sizes
        # Not durable: a shard that a loss of power damages fails its checksum, and is encoded again.
        with atomic_write(self._path(i), durable=False, shared=True) as file:
            out = ChecksumWriter(file)
            out.write(head)
            out.write(records)
            out.write_checksum()

    def seconds(self) -> float:
        """Return the seconds that encoding all shards took."""
        return float(sum(self._read(i, 0, np.dtype("<f8"), 1)[0] for i in range(len(self))))

    def sizes(self) -> np.ndarray:
        """Return the number of patches of each list, with the old patches: int64, shape (lists,)."""
        total = np.zeros(self._lists, np.int64) if self._old is None else self._old.sizes().astype(np.int64)
        for i in range(len(self)):
            total += self._sizes(i, 0, self._lists)
        return total

    def _sizes(self, i: int, lo: int, hi: int) -> np.ndarray:
        offset = self._head.fields["sizes"][1] + 4 * lo  # type: ignore[index]
        return self._read(i, offset, np.dtype("<i4"), hi - lo)

    def _read(self, i: int, offset: int, dtype: np.dtype, n: int) -> np.ndarray:
        found = np.empty(n, dtype)
        with self._path(i).open("rb") as file:
            file.seek(offset)
            if file.readinto(found.view(np.uint8).data) != found.nbytes:
                raise StoreError("is too short", where=self._path(i), remedy=self._go_on)
        return found

    def merged(self) -> Iterator[Bucket]:
        """Yield the patches of all shards, and the old patches, list by list, in buckets of `shard_bytes`."""
        before = np.cumsum(self.sizes()) * self._record.itemsize
        at = [self._head.itemsize] * len(self)  # where the next list begins in each shard
        lo = 0
        while lo < self._lists:
            full = (before[lo - 1] if lo else 0) + self._bytes
            hi = int(np.searchsorted(before, full, "right"))
            if hi == lo:
                yield from self._merged_list(lo, at)
                lo += 1
                continue
            sizes = [self._sizes(i, lo, hi) for i in range(len(self))]
            if self._old is not None:
                sizes.append(self._old.sizes()[lo:hi])
            total = np.stack(sizes).sum(0, dtype=np.int64)
            ids, codes = np.empty(total.sum(), np.int64), np.empty((total.sum(), self._code_bytes), np.uint8)
            places = np.cumsum(total) - total
            for records, size in zip(self._records(lo, sizes, at), sizes, strict=True):
                lists = np.repeat(np.arange(hi - lo), size)
                take_records(lists, records.view(np.uint8), places, ids, codes)
                del records, lists  # the caller keeps the bucket for long
            if self._old is not None:  # ids of later shards are larger; old ids are mixed with them
                order = np.lexsort((ids, np.repeat(np.arange(hi - lo), total)))
                ids = ids[order]
                codes = codes[order]
                del order
            yield Bucket(lo, total, ids, codes)
            lo = hi

    def _records(self, lo: int, sizes: list[np.ndarray], at: list[int]) -> Iterator[np.ndarray]:
        """Yield the records of lists lo, lo + 1, ... of each shard, and of the old patches; advance `at`.

        `sizes` has the patches of these lists in each shard, then of the old patches.
        """
        for i in range(len(self)):
            records = self._read(i, at[i], self._record, int(sizes[i].sum()))
            at[i] += records.nbytes
            yield records
        if self._old is not None:
            yield self._old_records(self._old, lo, sizes[-1])

    def _old_records(self, old: OldLists, lo: int, sizes: np.ndarray) -> np.ndarray:
        records = np.empty(int(sizes.sum()), self._record)
        for c, (size, stop) in enumerate(zip(sizes, np.cumsum(sizes), strict=True), lo):
            rows = records[stop - size : stop]
            rows["id"], rows["code"] = old.part(c, 0, int(size))
        return records

    def _merged_list(self, c: int, at: list[int]) -> Iterator[Bucket]:
        """Yield a list that is larger than a bucket in parts, and advance `at`."""
        step = max(1, self._bytes // (2 * self._record.itemsize))

        def new() -> Iterator[Members]:
            for i in range(len(self)):
                left = int(self._sizes(i, c, c + 1)[0])
                while left:
                    records = self._read(i, at[i], self._record, min(left, step))
                    at[i] += records.nbytes
                    left -= len(records)
                    yield records["id"].copy(), records["code"].copy()

        def old(lists: OldLists) -> Iterator[Members]:
            n = int(lists.sizes()[c])
            for start in range(0, n, step):
                yield lists.part(c, start, min(start + step, n))

        members = new() if self._old is None else _merged(new(), old(self._old))
        for ids, codes in members:
            yield Bucket(c, np.array([len(ids)]), ids, codes)


def _merged(first: Iterator[Members], second: Iterator[Members]) -> Iterator[Members]:
    """Merge two sequences of members with ascending ids into one."""
    a, b = next(first, None), next(second, None)
    while a is not None and b is not None:
        last = min(a[0][-1], b[0][-1])
        to_a, to_b = (int(np.searchsorted(ids, last, "right")) for ids, _ in (a, b))
        ids = np.concatenate([a[0][:to_a], b[0][:to_b]])
        codes = np.concatenate([a[1][:to_a], b[1][:to_b]])
        order = np.argsort(ids, kind="stable")
        yield ids[order], codes[order]
        a = (a[0][to_a:], a[1][to_a:]) if to_a < len(a[0]) else next(first, None)
        b = (b[0][to_b:], b[1][to_b:]) if to_b < len(b[0]) else next(second, None)
    for members, rest in ((a, first), (b, second)):
        if members is not None:
            yield members
        yield from rest
