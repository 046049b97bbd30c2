"""Opening refuses stores that are damaged, missing or of another format, and says why."""

from __future__ import annotations

import pytest
import torch
import zarr

import patchindex as pi
from patchindex.errors import SourceNotFoundError, StoreError
from patchindex.index.layout import scale_group
from patchindex.store.raw import raw_path


def faiss_file(index, k):
    return raw_path(index.path / scale_group(k), "faiss", 1)


@pytest.fixture
def own_store(labelled, tmp_path):
    return pi.build_index(labelled[0], tmp_path / "s.zarr", scales=[3], labels=labelled[1])


def test_truncated_faiss_file_is_refused_when_its_scale_is_used(own_store):
    file = faiss_file(own_store, 3)
    file.write_bytes(file.read_bytes()[:-10])
    again = pi.open_index(own_store.path)
    with pytest.raises(StoreError, match="bytes, not"):
        pi.ScoreMachine(again, estimator="topk").posterior_mean(torch.zeros(1, 1, 14, 14), 0.5, k=3)


def test_truncated_images_are_refused_at_opening(own_store):
    file = raw_path(own_store.path, "images", 4)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(StoreError, match="bytes, not"):
        pi.open_index(own_store.path)


def test_damaged_faiss_header_is_refused(own_store):
    file = faiss_file(own_store, 3)
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(StoreError, match="header is damaged"):
        _ = pi.open_index(own_store.path).scale(3).faiss


@pytest.mark.parametrize("name", ["labels", "source_ids"])
def test_missing_labels_or_source_ids_are_refused(own_store, name):
    (own_store.path / name / "zarr.json").unlink()
    with pytest.raises(StoreError, match=f"{name}/zarr.json: is missing"):
        pi.open_index(own_store.path)


def test_missing_array_of_a_scale_is_refused(own_store):
    (own_store.path / "scales" / "k003" / "centroids" / "zarr.json").unlink()
    with pytest.raises(StoreError, match="centroids"):
        pi.open_index(own_store.path).scale(3)


def test_attributes_that_are_not_json_are_refused(own_store):
    (own_store.path / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match=r"zarr\.json cannot be read"):
        pi.open_index(own_store.path)


def test_another_format_is_refused(own_store):
    group = zarr.open_group(own_store.path, mode="a")
    group.attrs["patchindex"] = {**group.attrs["patchindex"], "format": 99}
    with pytest.raises(StoreError, match="has format 99; this version reads"):
        pi.open_index(own_store.path)


def test_missing_path_is_refused(tmp_path):
    with pytest.raises(SourceNotFoundError, match="no such store"):
        pi.open_index(tmp_path / "none.zarr")
