"""Records of patches, put into the order of inverted lists: by shards, and when shards are merged.

    a record is the id of a patch, 8 bytes, little-endian, and its code

Why it is fast. The number of patches in each list is known, so each patch goes to its place at once, in one
pass over the bytes. To sort the numbers of the rows, and to gather by them, takes twice as long or more.
"""

from __future__ import annotations

from patchindex.kernels.compile import lean
from patchindex.kernels.simd import load_id

__all__ = ["add_moments", "put_records", "take_records"]


@lean
def put_records(lists, ids, codes, places, records):  # type: ignore[no-untyped-def]
    """Write the records of n patches, ordered by list. The patches of a list keep their order.

    `lists` and `ids` are int64 (n,), `codes` uint8 (n, code bytes), and `records` uint8 (bytes,). `places`,
    int64 (lists,), is the next free record of each list; the kernel counts it up.
    """
    code_bytes = codes.shape[1]
    for i in range(len(lists)):
        at, patch = places[lists[i]] * (8 + code_bytes), ids[i]
        places[lists[i]] += 1
        for j in range(8):
            records[at + j] = (patch >> (8 * j)) & 255
        for j in range(code_bytes):
            records[at + 8 + j] = codes[i, j]


@lean
def take_records(lists, records, places, ids, codes):  # type: ignore[no-untyped-def]
    """Copy n records to the places of their lists in `ids`, int64 (n,), and `codes`, uint8 (n, code bytes).

    `lists`, int64 (n,), has the list of each record; `places` is counted up as in `put_records`.
    """
    code_bytes = codes.shape[1]
    for i in range(len(lists)):
        row, at = places[lists[i]], i * (8 + code_bytes)
        places[lists[i]] += 1
        ids[row] = load_id(records, at)
        for j in range(code_bytes):
            codes[row, j] = records[at + 8 + j]


@lean
def add_moments(lists, codes, sums, squares):  # type: ignore[no-untyped-def]
    """Add codes, uint8 (n, dims), and their squares to the sums of their lists, int64 (lists, dims)."""
    for i in range(len(lists)):
        for j in range(codes.shape[1]):
            code = int(codes[i, j])
            sums[lists[i], j] += code
            squares[lists[i], j] += code * code
