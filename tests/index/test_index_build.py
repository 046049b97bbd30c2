"""Stores: what is in them, what plain FAISS and zarr see, and that nothing half-made is ever visible."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch
import zarr

import patchindex as pi
from patchindex.errors import InputError, OutputExistsError, SourceNotFoundError
from patchindex.index import build as build_module
from patchindex.index import plan_build
from patchindex.index import shards as shards_module
from patchindex.index.raw import raw_path
from patchindex.index.stages import ScaleBuild
from patchindex.index.store import scale_group
from patchindex.windows import gather_patches


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


# What is in a store.


@pytest.mark.parametrize("k", [3, 5])
def test_the_file_is_plain_faiss_and_holds_every_patch_once(store, k):
    plain = faiss.read_index(str(faiss_file(store, k)))
    total = len(store.training) * store.geometry(k).patches_per_image
    assert plain.ntotal == total == store.scale(k).attributes["patches"]
    ids = np.concatenate([ids for ids, _ in lists_of(store, k)])
    np.testing.assert_array_equal(np.sort(ids), np.arange(total))


@pytest.mark.parametrize("k", [3, 5])
def test_the_patches_of_a_list_belong_to_its_class(store, k):
    scale, geometry = store.scale(k), store.geometry(k)
    bounds = scale.lists.bounds
    assert len(bounds) == geometry.n_classes + 1
    assert bounds[-1] == scale.attributes["lists"]
    for c, (ids, _) in enumerate(lists_of(store, k)):
        own = np.searchsorted(bounds, c, "right") - 1
        assert (geometry.train_classes[ids % geometry.patches_per_image] == own).all()
        assert (np.diff(ids) > 0).all()  # ascending, as searching by label assumes


@pytest.mark.parametrize("k", [3, 5])
def test_codes_are_the_projected_patches(store, k):
    scale = store.scale(k)
    plain = faiss.read_index(str(faiss_file(store, k)))
    for ids, codes in lists_of(store, k):
        patches = gather_patches(store.pixels, store.geometry(k), torch.from_numpy(ids))
        found = plain.sq.decode(codes)
        projected = scale.pca.project(patches).numpy()
        # 8 bits over the range of each dimension, found on a sample: half a step inside of that range.
        trained = faiss.vector_to_array(plain.sq.trained)
        low, width = trained[: scale.pca.dims], trained[scale.pca.dims :]
        clipped = np.clip(projected, low, low + width)
        assert (np.abs(found - clipped) <= width / 255 * 0.51 + 1e-5).all()


@pytest.mark.parametrize("k", [3, 5])
def test_patches_are_in_a_list_as_near_as_the_nearest(store, k):
    """In the nearest of all for most, as the builder writes down; and never far from it."""
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
    # All patches of so small a store are in the sample that the builder measured.
    assert scale.attributes["assignment"]["nearest"] == pytest.approx(np.mean(nearest), abs=0.02)
    assert scale.attributes["assignment"]["excess"] == pytest.approx(got / least - 1, abs=0.01)


@pytest.mark.parametrize("k", [3, 5])
def test_means_and_variances_of_the_lists_are_written_down(store, k):
    scale = store.scale(k)
    plain = faiss.read_index(str(faiss_file(store, k)))
    group = zarr.open_group(scale.path, mode="r")
    means, variances = (np.asarray(group[name][:]) for name in ("list_means", "list_variances"))
    for c, (ids, codes) in enumerate(lists_of(store, k)):
        if len(ids):
            decoded = plain.sq.decode(codes).astype(np.float64)
            np.testing.assert_allclose(means[c], decoded.mean(0), atol=1e-5)
            np.testing.assert_allclose(variances[c], decoded.var(0), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("k", [3, 5])
def test_list_sizes_by_label(store, k):
    scale = store.scale(k)
    per_image = store.geometry(k).patches_per_image
    labels = store.training.labels
    for c, (ids, _) in enumerate(lists_of(store, k)):
        assert scale.list_sizes()[c] == len(ids)
        for i, label in enumerate(store.attributes["labels"]):
            assert scale.list_sizes(i)[c] == (labels[ids // per_image] == label).sum()


def test_images_labels_and_source_ids(store, labelled):
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
    np.testing.assert_array_equal(group["images"][:], images[training.source_ids])  # through its checksum


@pytest.mark.parametrize("label", [None, 4])
def test_search_finds_the_nearest_codes_of_the_class_and_label(store, label):
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
    assert "40 images of 14 x 14, scales 3, 5" in repr(store)


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


def test_colour_images_few_dimensions_and_few_lists(real_images, tmp_path):
    images = real_images(10, 12, channels=3)[0]
    index = pi.build_index(images, tmp_path / "s.zarr", scales=[3], pca_dims=5, lists=4)
    scale = index.scale(3)
    assert scale.pca.components.shape == (5, 3, 3, 3)
    assert scale.attributes["lists"] == len(scale.lists.centroids) == 4
    assert scale.attributes["pca_energy"] == pytest.approx(scale.pca.energy)


def test_the_schedule_is_kept(labelled, tmp_path):
    index = pi.build_index(labelled[0], tmp_path / "s.zarr", locality=[9, 3, 5, 5])
    again = pi.open_index(index.path)
    assert again.scales == (3, 5)
    assert again.locality == pi.LocalitySchedule.of([9, 3, 5, 5])


def test_one_image_of_one_colour(tmp_path):
    index = pi.build_index(np.full((1, 8, 8), 7, np.uint8), tmp_path / "s.zarr", scales=[3])
    assert index.scale(3).attributes["patches"] == 36
    e = pi.ScoreMachine(index).posterior_mean(torch.zeros(1, 1, 8, 8), 0.5, k=3)
    assert torch.isfinite(e.mean).all()
    torch.testing.assert_close(e.mean, torch.full((1, 1, 8, 8), 7 / 127.5 - 1))


# Interrupted builds.

SETTINGS = {"scales": (3, 5), "seed": 2}


def interrupt(monkeypatch, at, images, path, labels, stage="train", after=0, **settings):
    """Build, and fail when a stage of scale `at` begins, or what it is done with after some calls of it."""
    real = getattr(ScaleBuild, stage)
    calls = 0

    def failing(self, *arguments):
        nonlocal calls
        if self.k == at:
            calls += 1
            if calls > after:
                raise KeyboardInterrupt
        return real(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(ScaleBuild, stage, failing)
        with pytest.raises(KeyboardInterrupt):
            pi.build_index(images, path, labels=labels, **settings)


@pytest.mark.parametrize("at", [3, 5])
@pytest.mark.parametrize(
    ("stage", "after"), [("train", 0), ("encode", 0), ("encode", 2), ("merge", 0), ("_merge", 0)]
)
def test_an_interrupted_build_is_invisible_and_resume_makes_the_same_store(
    labelled, tmp_path, monkeypatch, at, stage, after
):
    images, labels = labelled
    path = tmp_path / "s.zarr"
    monkeypatch.setattr(shards_module, "SHARD_BYTES", 20_000)  # several
    monkeypatch.setattr(shards_module, "PIECE_BYTES", 0)
    names = []
    straight = pi.build_index(
        images, tmp_path / "a.zarr", labels=labels, **SETTINGS, progress=lambda name, *_: names.append(name)
    )
    shards = names.count(f"k={at} assigning patches")
    assert shards > 2
    interrupt(monkeypatch, at, images, path, labels, stage, after, **SETTINGS)
    assert not path.exists()
    with pytest.raises(SourceNotFoundError):
        pi.open_index(path)
    with pytest.raises(OutputExistsError, match="unfinished build"):
        pi.build_index(images, path, labels=labels, **SETTINGS)
    names.clear()
    resumed = pi.build_index(
        images, path, labels=labels, **SETTINGS, resume=True, progress=lambda name, *_: names.append(name)
    )
    assert not any(name.startswith("images") for name in names)
    assert any(name.startswith("k=3") for name in names) == (at == 3)
    # What is whole is not done again.
    assert any("training" in name for name in names if name.startswith(f"k={at}")) == (stage == "train")
    left = 0 if "merge" in stage else shards - after
    assert names.count(f"k={at} assigning patches") == left
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "s.zarr"]
    for k in (3, 5):
        for mine, its in zip(search_everything(resumed, k), search_everything(straight, k), strict=True):
            np.testing.assert_array_equal(mine, its)
    assert resumed.attributes["fingerprint"] == straight.attributes["fingerprint"]


def test_a_build_interrupted_while_the_images_are_written_resumes(labelled, tmp_path, monkeypatch):
    images, labels = labelled
    path = tmp_path / "s.zarr"

    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pi.build_index(images, path, labels=labels, **SETTINGS, progress=stop)
    assert not path.exists()
    index = pi.build_index(images, path, labels=labels, **SETTINGS, resume=True)
    np.testing.assert_array_equal(index.training.read(0, 40), images[index.training.source_ids])


def test_resume_with_nothing_there_is_a_build(labelled, tmp_path):
    assert pi.build_index(labelled[0], tmp_path / "s.zarr", scales=[3], resume=True).scales == (3,)


def test_resume_of_a_finished_store_does_nothing(labelled, tmp_path, monkeypatch):
    images, labels = labelled
    made = pi.build_index(images, tmp_path / "s.zarr", labels=labels, **SETTINGS)
    before = {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in made.path.rglob("*") if f.is_file()}
    monkeypatch.setattr(build_module, "ScaleBuild", None)
    again = pi.build_index(images, made.path, labels=labels, **SETTINGS, resume=True)
    assert again.attributes == made.attributes
    assert before == {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in made.path.rglob("*") if f.is_file()}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 3}, "seed"),
        ({"scales": (3, 7)}, "scales"),
        ({"machine": "bbELS"}, "machine"),
        ({"train_windows": "wrapped"}, "train_windows"),
        ({"pca_dims": 4}, "pca_dims"),
        ({"lists": 4}, "lists"),
        ({"labels": None}, "labels"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_resume_with_other_settings_is_refused(labelled, tmp_path, monkeypatch, change, name, finished):
    images, labels = labelled
    path = tmp_path / "s.zarr"
    settings = {"scales": (3,), "labels": labels}
    if finished:
        pi.build_index(images, path, **settings)
    else:
        interrupt(monkeypatch, 3, images, path, **settings)
    with pytest.raises(InputError, match=rf"other settings \([^)]*{name}"):
        pi.build_index(images, path, **{**settings, **change}, resume=True)
    assert path.exists() == finished


@pytest.mark.parametrize("finished", [True, False])
def test_resume_with_other_images_is_refused(labelled, tmp_path, monkeypatch, finished):
    images, _ = labelled
    path = tmp_path / "s.zarr"
    if finished:
        pi.build_index(images, path, scales=[3])
    else:
        interrupt(monkeypatch, 3, images, path, None, scales=[3])
    with pytest.raises(InputError, match=r"other settings \(images\)"):
        pi.build_index(255 - images, path, scales=[3], resume=True)


# What is in the way.


def test_a_store_that_is_there_is_replaced_only_when_asked(labelled, tmp_path):
    images, _ = labelled
    made = pi.build_index(images, tmp_path / "s.zarr", scales=[3])
    with pytest.raises(OutputExistsError, match="exists already"):
        pi.build_index(images[:20], made.path, scales=[3])
    assert len(pi.open_index(made.path).training) == 40
    assert len(pi.build_index(images[:20], made.path, scales=[3], overwrite=True).training) == 20
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


def test_a_failing_overwrite_leaves_the_old_store(labelled, tmp_path, monkeypatch):
    images, labels = labelled
    path = tmp_path / "s.zarr"
    pi.build_index(images, path, scales=[3])
    interrupt(monkeypatch, 3, images[:20], path, labels[:20], scales=[3], overwrite=True)
    assert len(pi.open_index(path).training) == 40
    # The next one starts anew over what the failed one left.
    assert len(pi.build_index(images[:10], path, scales=[3], overwrite=True).training) == 10


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scales": [3], "memory": "1M"}, "memory: the build may need"),
        ({"scales": [4]}, "k must be odd"),
        ({}, "scales"),
        ({"scales": [3], "labels": [1, 2]}, "2 labels for 40 images"),
        ({"scales": [3], "threads": 0}, "threads: must be 1 to 1024"),
        ({"scales": [3], "device": "tpu"}, "device"),
    ],
)
def test_a_refused_build_leaves_nothing(labelled, tmp_path, settings, words):
    path = tmp_path / "deep" / "s.zarr"
    with pytest.raises(InputError, match=words):
        pi.build_index(labelled[0], path, **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_build_within_its_budget_is_allowed(labelled, tmp_path):
    plan, _ = pi.index.plan_build(pi.open_images(labelled[0]), [3])
    with pytest.raises(InputError, match="memory"):
        pi.build_index(labelled[0], tmp_path / "s.zarr", scales=[3], memory=plan.memory_bytes - 1)
    assert_nothing_at(tmp_path / "s.zarr")
    pi.build_index(labelled[0], tmp_path / "s.zarr", scales=[3], memory=plan.memory_bytes)


def test_a_build_is_resumed_with_another_budget_and_keeps_its_lists(real_images, tmp_path, monkeypatch):
    images = real_images(1500, 20)[0]  # 486 000 patches
    path = tmp_path / "s.zarr"
    source = pi.open_images(images)
    free = plan_build(source, [3])[0]
    less = free.memory_bytes - 1
    tight = plan_build(source, [3], memory=less)[0]
    assert tight.scales[0].lists < free.scales[0].lists
    interrupt(monkeypatch, 3, images, path, None, "encode", scales=[3], memory=less)
    index = pi.build_index(images, path, scales=[3], resume=True)
    assert index.scale(3).attributes["lists"] <= tight.scales[0].lists
    assert pi.build_index(images, path, scales=[3], resume=True, memory="1M").scales == (3,)
