"""Arrays of a store are read as zarr reads them."""

from __future__ import annotations

import numpy as np
import zarr

from patchindex.store.arrays import read_array, read_head


def test_every_array_reads_as_zarr_reads_it(store):
    names = [file.parent for file in store.path.rglob("zarr.json") if (file.parent / "c").exists()]
    assert len(names) > 12
    for path in names:
        array = zarr.open_array(path, mode="r")
        head = read_head(path.parent, path.name)
        if not head.raw:
            found = read_array(path.parent, path.name, head.dtype.name, array.shape)
            np.testing.assert_array_equal(found, np.asarray(array[:]))


def test_an_array_of_several_chunks_is_read_whole(tmp_path):
    data = np.arange(7 * 5, dtype=np.float32).reshape(7, 5)
    data[:3, :2] = 0  # zarr writes no file for a chunk of zeros
    group = zarr.open_group(tmp_path, mode="w")
    group.create_array("a", shape=data.shape, chunks=(3, 2), dtype="float32")[:] = data
    np.testing.assert_array_equal(read_array(tmp_path, "a", "float32", (7, 5)), data)
    assert not (tmp_path / "a/c/0/0").exists()
