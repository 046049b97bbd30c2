"""What tests look at in a store."""

from __future__ import annotations

import faiss
import numpy as np
import torch

from patchindex.index.patch_index import scale_group
from patchindex.store.raw import raw_path


def faiss_file(index, k):
    return raw_path(index.path / scale_group(k), "faiss", 1)


def lists_of(index, k):
    """Ids and codes of each inverted list, as plain FAISS reads them from the file."""
    plain = faiss.read_index(str(faiss_file(index, k)))
    for c in range(plain.nlist):
        n = plain.invlists.list_size(c)
        ids = faiss.rev_swig_ptr(plain.invlists.get_ids(c), n).copy()
        codes = faiss.rev_swig_ptr(plain.invlists.get_codes(c), n * plain.code_size).copy()
        yield ids, codes.reshape(n, plain.code_size)


def search_everything(index, k, label=None):
    """The nearest codes to some real patches, with all lists probed."""
    scale = index.scale(k)
    x = torch.from_numpy(index.training.read(0, 3).transpose(0, 3, 1, 2) / 127.5 - 1).float()
    z = scale.pca.project_queries(x, scale.geometry, 1.0).numpy()
    classes = np.tile(scale.geometry.query_classes.ravel(), 3)
    keys = scale.lists.nearest(z, classes, len(scale.lists.centroids))
    images = None if label is None else index.training.range_of(label)
    return (*scale.search(z, keys, 10, images), classes)


def assert_nothing_at(path):
    assert not path.exists()
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(path.name)] == []
