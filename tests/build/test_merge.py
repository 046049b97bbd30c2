"""The FAISS file written list by list, and the moments of its codes."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import zarr

from patchindex.build.merge import CodeMoments, write_index
from patchindex.build.shards import Shards
from patchindex.index.faiss_file import code_ranges, empty_index, lists_offset
from patchindex.index.model import fit_ranges
from patchindex.store.raw import RawWriter, raw_path

DIMS, LISTS = 8, 12


@pytest.fixture
def vectors():
    return np.random.default_rng(0).standard_normal((700, DIMS)).astype(np.float32)


def written(folder, vectors, assigned):
    """Write vectors into lists; return the file's bytes, the sizes and the moments."""
    zarr.open_group(folder, mode="w")
    index = empty_index(vectors[:LISTS], fit_ranges(vectors))
    sizes = np.bincount(assigned, minlength=LISTS)
    moments = CodeMoments(LISTS, DIMS)
    (folder / "shards").mkdir()
    shards = Shards(folder / "shards", LISTS, DIMS, images=len(vectors), patches_per_image=1)
    shards.write(0, assigned, index.sq.compute_codes(vectors), 0.0)
    with RawWriter(folder, "faiss", "uint8") as out:
        write_index(out, index, sizes, moments.watch(shards.merged()))
    return raw_path(folder, "faiss", 1).read_bytes()[:-4], sizes, moments, index


def test_codes_are_those_of_an_index_that_faiss_trains(vectors):
    plain = faiss.IndexScalarQuantizer(DIMS, faiss.ScalarQuantizer.QT_8bit)
    plain.train(vectors)
    np.testing.assert_array_equal(faiss.vector_to_array(plain.sq.trained), fit_ranges(vectors).ravel())


def test_the_bytes_are_those_that_faiss_writes(tmp_path, vectors):
    assigned = np.random.default_rng(1).integers(0, LISTS, len(vectors))
    found, sizes, _, _ = written(tmp_path, vectors, assigned)
    index = empty_index(vectors[:LISTS], fit_ranges(vectors))
    ids, lists = np.arange(len(vectors)), np.ascontiguousarray(assigned)
    index.add_core(len(vectors), *(faiss.swig_ptr(a) for a in (vectors, ids, lists)))
    assert found == faiss.serialize_index(index).tobytes()
    first = index.invlists.get_codes(0)
    begin = lists_offset(len(found), sizes, DIMS)
    expected = faiss.rev_swig_ptr(first, int(sizes[0]) * DIMS).tobytes()
    assert found[begin : begin + len(expected)] == expected


def test_a_file_with_many_empty_lists_is_read_by_faiss(tmp_path, vectors):
    """FAISS itself would write another kind of table of sizes then, and reads both."""
    assigned = np.where(np.arange(len(vectors)) % 3 > 0, 5, 2)
    found, sizes, _, _ = written(tmp_path, vectors, assigned)
    index = faiss.deserialize_index(np.frombuffer(found, np.uint8))
    assert [index.invlists.list_size(c) for c in range(LISTS)] == sizes.tolist()
    ids = faiss.rev_swig_ptr(index.invlists.get_ids(2), int(sizes[2]))
    np.testing.assert_array_equal(ids, np.flatnonzero(assigned == 2))


def test_moments_are_those_of_the_decoded_codes(tmp_path, vectors):
    assigned = np.random.default_rng(1).integers(0, LISTS - 1, len(vectors))  # the last list is empty
    _, _, moments, index = written(tmp_path, vectors, assigned)
    means, variances = moments.decoded(*code_ranges(index))
    decoded = index.sq.decode(index.sq.compute_codes(vectors))
    for c in range(LISTS - 1):
        np.testing.assert_allclose(means[c], decoded[assigned == c].mean(0), atol=1e-5)
        np.testing.assert_allclose(variances[c], decoded[assigned == c].var(0), rtol=1e-4)
    assert (means[-1] == 0).all()
    assert (variances[-1] == 0).all()
