"""Helpers for tests of stores: their contents, and interrupted builds."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch

from patchindex.errors import StoreError
from patchindex.index.layout import scale_group
from patchindex.store.raw import raw_path


def faiss_file(index, k):
    return raw_path(index.path / scale_group(k), "faiss", 1)


def lists_of(index, k):
    """Yield ids and codes of each inverted list, as plain FAISS reads them from the file."""
    plain = faiss.read_index(str(faiss_file(index, k)))
    for c in range(plain.nlist):
        n = plain.invlists.list_size(c)
        ids = faiss.rev_swig_ptr(plain.invlists.get_ids(c), n).copy()
        codes = faiss.rev_swig_ptr(plain.invlists.get_codes(c), n * plain.code_size).copy()
        yield ids, codes.reshape(n, plain.code_size)


def assert_same_lists(index, other, k):
    for mine, its in zip(lists_of(index, k), lists_of(other, k), strict=True):
        np.testing.assert_array_equal(mine[0], its[0])
        np.testing.assert_array_equal(mine[1], its[1])


def search_everything(index, k, label=None):
    """Return the nearest codes to some real patches, with all lists probed."""
    scale = index.scale(k)
    x = torch.from_numpy(index.training.read(0, 3).transpose(0, 3, 1, 2) / 127.5 - 1).float()
    z = scale.pca.project_queries(x, scale.geometry, 1.0).numpy()
    classes = np.tile(scale.geometry.query_classes.ravel(), 3)
    keys = scale.lists.nearest(z, classes, len(scale.lists.centroids))
    images = None if label is None else index.training.range_of(label)
    return (*scale.search(z, keys, 10, images), classes)


def tree(path):
    """Return the content of every file of a folder, by its name."""
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def assert_refuses_damaged_images(path, work):
    """Change a pixel of a store; `work` has to refuse the images, and to change nothing."""
    file = path / "images" / "c" / "0" / "0" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[500] ^= 255
    file.write_bytes(content)
    before = tree(path)
    with pytest.raises(StoreError, match=r"images 0 to \d+ are damaged"):
        work()
    assert tree(path) == before


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def interrupted(function, *arguments, at, after=0, **options):
    """Call a function, and interrupt it at a stage, after some reports of progress of that stage."""
    reports = []

    def progress(stage, done, total):
        reports.append(stage.startswith(at))
        if sum(reports) > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        function(*arguments, progress=progress, **options)


def stages_of(function, *arguments, **options):
    """Return what a function returns, and the stages that it reports."""
    stages = []
    found = function(*arguments, progress=lambda stage, *_: stages.append(stage), **options)
    return found, stages


def assert_nothing_at(path):
    assert [name for name in names_in(path.parent) if name.startswith(path.name)] == []
