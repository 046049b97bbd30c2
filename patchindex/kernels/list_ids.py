"""The check of the patch ids of inverted lists: each list once, before any other kernel uses its ids.

    ids ascend; the ids of label i are below ends[i], and there are counts[i, list] of them;
    classes[id mod patches per image] is the position class of the list

Why it is fast. Ids ascend, so the label of an id is the label of the id before, or a later one: no division.
A machine with one position class needs none at all.
"""

from __future__ import annotations

from patchindex.kernels.compile import lean
from patchindex.kernels.simd import load_id

__all__ = ["first_wrong_list"]


@lean
def first_wrong_list(file, ids_at, lists, own, classes, ends, counts, wrong):  # type: ignore[no-untyped-def]
    """Set `wrong[0]` to the first of `lists` whose ids are wrong, or to -1.

    `ids_at`, int64 (all lists,), is the first byte in `file` of each list's ids; `own`, int64 (all lists,),
    is the position class of each list; `classes`, int64 (patches per image,), is empty for one class.
    """
    labels, per_image = len(ends), len(classes)
    for c in lists:
        before, label, left = -1, 0, counts[0, c]
        size = 0
        for i in range(labels):
            size += counts[i, c]
        good = True
        for i in range(size):
            patch = load_id(file, ids_at[c] + 8 * i)
            good = good and patch > before and patch < ends[labels - 1]
            if not good:
                break
            while patch >= ends[label]:
                good = good and left == 0
                label += 1
                left = counts[label, c]
            left -= 1
            if per_image:
                good = good and classes[patch % per_image] == own[c]
            before = patch
        if good and left == 0:
            for i in range(label + 1, labels):
                good = good and counts[i, c] == 0
        if not good or left != 0:
            wrong[0] = c
            return
    wrong[0] = -1
