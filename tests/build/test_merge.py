"""The FAISS file that is written list by list, also when a list is larger than memory."""

from __future__ import annotations

import tracemalloc

import faiss
import numpy as np
import pytest
import zarr
from stores import assert_same_lists

import patchindex as pi
from patchindex.build import shards
from patchindex.build.merge import write_index
from patchindex.build.scale import ScaleBuild
from patchindex.build.shards import Shards
from patchindex.index.faiss_file import empty_index, head_bytes
from patchindex.index.model import fit_ranges
from patchindex.store.raw import raw_path, write_raw

DIMS, LISTS = 8, 12


@pytest.fixture
def vectors():
    return np.random.default_rng(0).standard_normal((700, DIMS)).astype(np.float32)


def written(folder, vectors, assigned):
    """Write vectors into lists; return the bytes of the file, the sizes of the lists and the index."""
    zarr.open_group(folder, mode="w")
    index = empty_index(vectors[:LISTS], fit_ranges(vectors))
    sizes = np.bincount(assigned, minlength=LISTS)
    (folder / "shards").mkdir()
    encoded = Shards(folder / "shards", LISTS, DIMS, np.arange(len(vectors)), 1)
    encoded.write(0, assigned, index.sq.compute_codes(vectors), 0.0)
    with write_raw(folder, "faiss", "uint8") as out:
        write_index(out, index, sizes, encoded.merged(), folder)
    return raw_path(folder, "faiss", 1).read_bytes()[:-4], sizes, index


def test_code_ranges_equal_those_that_faiss_trains(vectors):
    plain = faiss.IndexScalarQuantizer(DIMS, faiss.ScalarQuantizer.QT_8bit)
    plain.train(vectors)
    np.testing.assert_array_equal(faiss.vector_to_array(plain.sq.trained), fit_ranges(vectors).ravel())


def test_the_bytes_equal_those_that_faiss_writes(tmp_path, vectors):
    assigned = np.random.default_rng(1).integers(0, LISTS, len(vectors))
    found, sizes, _ = written(tmp_path, vectors, assigned)
    index = empty_index(vectors[:LISTS], fit_ranges(vectors))
    ids, lists = np.arange(len(vectors)), np.ascontiguousarray(assigned)
    index.add_core(len(vectors), *(faiss.swig_ptr(a) for a in (vectors, ids, lists)))
    assert found == faiss.serialize_index(index).tobytes()
    first = index.invlists.get_codes(0)
    begin = head_bytes(LISTS, DIMS)
    expected = faiss.rev_swig_ptr(first, int(sizes[0]) * DIMS).tobytes()
    assert found[begin : begin + len(expected)] == expected


def test_faiss_reads_a_file_with_many_empty_lists(tmp_path, vectors):
    """FAISS itself writes another table of sizes for such an index, and reads both."""
    assigned = np.where(np.arange(len(vectors)) % 3 > 0, 5, 2)
    found, sizes, _ = written(tmp_path, vectors, assigned)
    index = faiss.deserialize_index(np.frombuffer(found, np.uint8))
    assert [index.invlists.list_size(c) for c in range(LISTS)] == sizes.tolist()
    ids = faiss.rev_swig_ptr(index.invlists.get_ids(2), int(sizes[2]))
    np.testing.assert_array_equal(ids, np.flatnonzero(assigned == 2))


def alike(n):
    """Images most of whose patches are the same."""
    images = np.zeros((n, 20, 20, 1), np.uint8)
    images[:, 8:13, 8:13] = np.random.default_rng(0).integers(0, 256, (n, 5, 5, 1))
    return images


def test_a_list_larger_than_a_bucket_is_merged_in_parts(tmp_path, request):
    options = {"scales": [3], "labels": np.arange(60) % 3, "lists": 60}
    straight = pi.build_index(alike(60), tmp_path / "a.zarr", **options)
    request.getfixturevalue("small_shards")
    store = pi.build_index(alike(60), tmp_path / "b.zarr", **options)
    assert store.scale(3).list_sizes().max() * (store.scale(3).pca.dims + 8) > 10 * shards.SHARD_BYTES
    assert_same_lists(store, straight, 3)
    for name in ("list_counts", "list_means", "list_variances", "list_checksums"):
        np.testing.assert_array_equal(
            *(zarr.open_group(index.path / "scales/k003")[name][:] for index in (store, straight))
        )
    empty = store.scale(3).list_sizes() == 0
    assert empty.any()
    assert not zarr.open_group(store.path / "scales/k003")["list_means"][:][empty].any()
    assert pi.verify(store.path).whole
    pi.append(store.path, alike(70)[60:], labels=np.zeros(10, int))
    assert pi.verify(store.path).whole


def test_merging_more_patches_takes_no_more_memory(tmp_path, small_shards, monkeypatch):
    peaks, real = {500: [], 1500: []}, ScaleBuild._merge

    def traced(self, progress):
        tracemalloc.start()
        try:
            return real(self, progress)
        finally:
            peaks[n].append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()

    monkeypatch.setattr(ScaleBuild, "_merge", traced)
    for i, n in enumerate((500, 1500, 500, 1500)):  # the smaller build has full buckets too
        store = pi.build_index(alike(n), tmp_path / f"{i}.zarr", scales=[3], lists=20, pca_dims=8)
    largest = int(store.scale(3).list_sizes().max()) * 16
    assert largest > 3e6
    # The smaller of two peaks, as other threads of the process allocate memory, too.
    assert min(peaks[1500]) < min(peaks[500]) + largest / 8
