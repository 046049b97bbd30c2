"""The contents of a store, as patchindex, plain FAISS and zarr read them."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch
import zarr
from stores import faiss_file, lists_of, search_everything

import patchindex as pi
from patchindex.errors import InputError
from patchindex.geometry import gather_patches

each_scale = pytest.mark.parametrize("k", [3, 5])


@each_scale
def test_the_file_is_plain_faiss_and_holds_every_patch_once(store, k):
    plain = faiss.read_index(str(faiss_file(store, k)))
    total = len(store.training) * store.geometry(k).patches_per_image
    assert plain.ntotal == total == store.scale(k).attributes["patches"]
    ids = np.concatenate([ids for ids, _ in lists_of(store, k)])
    np.testing.assert_array_equal(np.sort(ids), np.arange(total))


@each_scale
def test_the_patches_of_a_list_have_its_position_class(store, k):
    scale, geometry = store.scale(k), store.geometry(k)
    bounds = scale.lists.bounds
    assert len(bounds) == geometry.n_classes + 1
    assert bounds[-1] == scale.attributes["lists"]
    for c, (ids, _) in enumerate(lists_of(store, k)):
        own = np.searchsorted(bounds, c, "right") - 1
        assert (geometry.train_classes[ids % geometry.patches_per_image] == own).all()
        assert (np.diff(ids) > 0).all()  # searching by label needs ascending ids


@each_scale
def test_codes_decode_to_the_projected_patches(store, k):
    scale = store.scale(k)
    plain = faiss.read_index(str(faiss_file(store, k)))
    for ids, codes in lists_of(store, k):
        patches = gather_patches(store.pixels, store.geometry(k), torch.from_numpy(ids))
        found = plain.sq.decode(codes)
        projected = scale.pca.project(patches).numpy()
        # 8 bits over the range of each dimension in a sample: half a step of error inside that range.
        trained = faiss.vector_to_array(plain.sq.trained)
        low, width = trained[: scale.pca.dims], trained[scale.pca.dims :]
        clipped = np.clip(projected, low, low + width)
        assert (np.abs(found - clipped) <= width / 255 * 0.51 + 1e-5).all()


@each_scale
def test_most_patches_are_in_their_nearest_list(store, k):
    scale = store.scale(k)
    nearest, got, least = [], 0.0, 0.0
    for c, (ids, _) in enumerate(lists_of(store, k)):
        own = int(np.searchsorted(scale.lists.bounds, c, "right") - 1)
        lo, hi = scale.lists.bounds[own : own + 2]
        patches = gather_patches(store.pixels, store.geometry(k), torch.from_numpy(ids))
        distances = np.square(scale.pca.project(patches).numpy()[:, None] - scale.lists.centroids[lo:hi]).sum(
            2
        )
        nearest += (distances[:, c - lo] <= distances.min(1) + 1e-4).tolist()
        got, least = got + distances[:, c - lo].sum(), least + distances.min(1).sum()
    assert np.mean(nearest) > 0.85
    assert got < 1.05 * least
    # The sample of the builder has all patches of a store this small.
    assert scale.attributes["assignment"]["nearest"] == pytest.approx(np.mean(nearest), abs=0.02)
    assert scale.attributes["assignment"]["excess"] == pytest.approx(got / least - 1, abs=0.01)


@each_scale
def test_means_and_variances_of_the_lists_are_stored(store, k):
    scale = store.scale(k)
    plain = faiss.read_index(str(faiss_file(store, k)))
    group = zarr.open_group(scale.path, mode="r")
    means, variances = (np.asarray(group[name][:]) for name in ("list_means", "list_variances"))
    for c, (ids, codes) in enumerate(lists_of(store, k)):
        if len(ids):
            decoded = plain.sq.decode(codes).astype(np.float64)
            np.testing.assert_allclose(means[c], decoded.mean(0), atol=1e-5)
            np.testing.assert_allclose(variances[c], decoded.var(0), rtol=1e-3, atol=1e-6)


@each_scale
def test_list_sizes_count_the_patches_of_a_label(store, k):
    scale = store.scale(k)
    per_image = store.geometry(k).patches_per_image
    labels = store.training.labels
    for c, (ids, _) in enumerate(lists_of(store, k)):
        assert scale.list_sizes()[c] == len(ids)
        for i, label in enumerate(store.attributes["labels"]):
            assert scale.list_sizes(i)[c] == (labels[ids // per_image] == label).sum()


def test_images_labels_and_source_ids_are_in_label_order(store, labelled):
    images, labels = labelled
    training = store.training
    assert (np.diff(training.labels) >= 0).all()
    np.testing.assert_array_equal(np.sort(training.source_ids), np.arange(40))
    np.testing.assert_array_equal(training.read(0, 40), images[training.source_ids])
    np.testing.assert_array_equal(training.labels, labels[training.source_ids])
    for label in (1, 4, 9):
        lo, hi = training.range_of(label)
        # Stable: images of a label are in the order of their source.
        np.testing.assert_array_equal(training.source_ids[lo:hi], np.flatnonzero(labels == label))
    group = zarr.open_group(store.path, mode="r")
    # zarr verifies the checksum
    np.testing.assert_array_equal(group["images"][:], images[training.source_ids])


@pytest.mark.parametrize("label", [None, 4])
def test_search_finds_the_nearest_codes_of_class_and_label(store, label):
    distances, ids, classes = search_everything(store, 3, label)
    geometry, scale = store.geometry(3), store.scale(3)
    plain = faiss.read_index(str(faiss_file(store, 3)))
    decoded = np.empty((plain.ntotal, plain.d), np.float32)
    for members, codes in lists_of(store, 3):
        decoded[members] = plain.sq.decode(codes)
    all_ids = np.arange(plain.ntotal)
    allowed = np.ones(plain.ntotal, bool)
    if label is not None:
        allowed = store.training.labels[all_ids // geometry.patches_per_image] == label
    class_of = geometry.train_classes[all_ids % geometry.patches_per_image]
    x = torch.from_numpy(store.training.read(0, 3).transpose(0, 3, 1, 2) / 127.5 - 1).float()
    z = scale.pca.project_queries(x, geometry, 1.0).numpy()
    for row in range(0, len(z), 29):
        mine = np.flatnonzero(allowed & (class_of == classes[row]))
        expected = np.sort(((z[row] - decoded[mine]) ** 2).sum(1))[:10]
        found = ids[row] >= 0
        assert found.sum() == min(10, len(mine))
        assert set(ids[row][found]) <= set(mine.tolist())
        np.testing.assert_allclose(distances[row][found], expected, rtol=1e-4, atol=1e-4)  # float32 sums


def test_info_and_repr(store):
    info = store.info()
    assert info["images"] == 40
    assert info["labels"] == [1, 4, 9]
    assert info["bytes"] == sum(f.stat().st_size for f in store.path.rglob("*") if f.is_file())
    assert set(info["indexes"]) == {"3", "5"}
    assert info["indexes"]["3"]["build_id"] == store.scale(3).build_id
    assert info["indexes"]["3"]["images_checksum"] == store.scale(3).images_checksum
    assert not {"of", "images", "head_checksum"} & set(info["indexes"]["3"])
    assert "40 images of 14 x 14, scales 3, 5" in repr(store)
    assert len(store) == 40


def test_opening_again_gives_the_same_answers(store):
    again = pi.open_index(store.path)
    assert again.attributes == store.attributes
    for mine, its in zip(search_everything(store, 5), search_everything(again, 5), strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize("machine", ["LS", "IS"])
def test_a_store_of_an_exact_machine_holds_no_index(labelled, tmp_path, machine):
    images, labels = labelled
    index = pi.build_index(images, tmp_path / "s.zarr", scales=(3, 5), labels=labels, machine=machine)
    assert index.scales == ()
    assert not (index.path / "scales").exists()
    np.testing.assert_array_equal(index.training.read(0, 40), images[index.training.source_ids])
    with pytest.raises(InputError, match="no index for it, only for none"):
        index.scale(3)


def test_without_labels_the_order_is_kept(labelled, tmp_path):
    index = pi.build_index(labelled[0], tmp_path / "s.zarr", scales=[3])
    assert index.training.labels is None
    np.testing.assert_array_equal(index.training.source_ids, np.arange(40))
    np.testing.assert_array_equal(index.training.read(0, 40), labelled[0])
    with pytest.raises(InputError, match="no labels"):
        index.training.range_of(1)


def test_pca_dims_and_lists_are_as_given(real_images, tmp_path):
    images = real_images(10, 12, channels=3)[0]
    index = pi.build_index(images, tmp_path / "s.zarr", scales=[3], pca_dims=5, lists=4)
    scale = index.scale(3)
    assert scale.pca.components.shape == (5, 3, 3, 3)
    assert scale.attributes["lists"] == len(scale.lists.centroids) == 4
    assert scale.attributes["pca_energy"] == pytest.approx(scale.pca.energy)


def test_the_store_keeps_the_schedule(labelled, tmp_path):
    index = pi.build_index(labelled[0], tmp_path / "s.zarr", locality=[9, 3, 5, 5])
    again = pi.open_index(index.path)
    assert again.scales == (3, 5)
    assert again.locality == pi.LocalitySchedule.of([9, 3, 5, 5])


def test_a_store_of_an_earlier_release_keeps_its_schedule(labelled, tmp_path, monkeypatch):
    build = (labelled[0], tmp_path / "s.zarr", [3])
    options = {"locality": [9, 3, 5, 5], "pca_dims": 4, "lists": 4}
    with monkeypatch.context() as earlier:  # stores had scales by time, without noise variances
        earlier.setattr(pi.LocalitySchedule, "as_dict", lambda s: {"name": s.name, "scales": [9, *s.scales]})
        pi.build_index(*build, **options)
    index = pi.open_index(tmp_path / "s.zarr")
    assert index.attributes["locality"] == {"name": "custom", "scales": [9, 3, 5, 5]}
    assert index.locality == pi.LocalitySchedule.of([9, 3, 5, 5]).nearest([3])
    assert pi.build_index(*build, **options, resume=True).locality == index.locality
    assert pi.add_scales(index.path, 5, pca_dims=4, lists=4).locality == pi.LocalitySchedule.of([9, 3, 5, 5])


def test_a_store_keeps_the_provenance_of_its_schedule(real_images, tmp_path):
    images, schedule = real_images(5, 28)[0], pi.LocalitySchedule.of("fashion-mnist-resnet-zeros")
    with pytest.warns(pi.PatchIndexWarning, match="images of 32 x 32, not 28 x 28") as caught:
        index = pi.build_index(images, tmp_path / "s.zarr", machine="LS", locality=schedule)
    assert [warning.filename for warning in caught] == [__file__]
    assert index.locality == schedule
    resized = schedule.resized(28)
    index = pi.build_index(images, tmp_path / "s.zarr", machine="LS", locality=resized, overwrite=True)
    assert pi.open_index(index.path).locality == resized


def test_one_image_of_one_colour(tmp_path):
    index = pi.build_index(np.full((1, 8, 8), 7, np.uint8), tmp_path / "s.zarr", scales=[3])
    assert index.scale(3).attributes["patches"] == 36
    e = pi.ScoreMachine(index).posterior_mean(torch.zeros(1, 1, 8, 8), 0.5, k=3)
    assert torch.isfinite(e.mean).all()
    torch.testing.assert_close(e.mean, torch.full((1, 1, 8, 8), 7 / 127.5 - 1))


def test_training_reports_how_far_it_is(labelled, tmp_path):
    reports = []
    pi.build_index(
        labelled[0], tmp_path / "s.zarr", 3, lists=150, progress=lambda *each: reports.append(each)
    )
    training = [done / total for stage, done, total in reports if "training 150 lists" in stage]
    assert training[0] == 0
    assert training[-1] == 1
    assert training == sorted(training)
    assert len(training) > 10  # a report for each cell of the lists
