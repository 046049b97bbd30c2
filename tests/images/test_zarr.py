import numpy as np
import pytest
import zarr

from patchindex.images import open_images


def array(path, images, **kwargs):
    return zarr.create_array(str(path), data=images, chunks=(6, *images.shape[1:]), **kwargs)


def group(path, **arrays):
    root = zarr.open_group(str(path), mode="w")
    for name, images in arrays.items():
        root.create_array(name.replace("__", "/"), data=images)
    return root


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_array_round_trip(tmp_path, rgb, zarr_format):
    path = tmp_path / "set.zarr"
    array(path, rgb, zarr_format=zarr_format)
    source = open_images(path)
    np.testing.assert_array_equal(source[:], rgb)
    np.testing.assert_array_equal(source[[19, 0, 19, 4]], rgb[[19, 0, 19, 4]])
    assert source.labels is None
    assert source.name == str(path)


def test_group_round_trip_with_labels(tmp_path, rgb, labels):
    path = tmp_path / "set.zarr"
    group(path, images=rgb, labels=labels)
    source = open_images(path)
    np.testing.assert_array_equal(source[:], rgb)
    np.testing.assert_array_equal(source.labels, labels)


def test_recognised_without_the_suffix(tmp_path, gray):
    array(tmp_path / "set", gray)
    np.testing.assert_array_equal(open_images(tmp_path / "set")[:][..., 0], gray)


def test_floats(tmp_path, rgb):
    array(tmp_path / "set.zarr", (rgb / 255).astype(np.float32))
    np.testing.assert_array_equal(open_images(tmp_path / "set.zarr")[5:9], rgb[5:9])


def test_a_nested_array_is_chosen(tmp_path, gray, rgb, labels):
    path = tmp_path / "set.zarr"
    group(path, train__x=rgb, train__labels=labels, test__x=gray)
    for source in (
        open_images(path, dataset="train/x"),
        open_images(path, dataset="/train/x"),
        open_images(f"{path}::train/x"),
    ):
        np.testing.assert_array_equal(source[:], rgb)
        np.testing.assert_array_equal(source.labels, labels)
    assert open_images(f"{path}::test/x").labels is None


def test_chunks_are_read_when_asked_for(tmp_path, gray):
    path = tmp_path / "set.zarr"
    array(path, gray, compressors=None)
    source = open_images(path)
    chunk = path / "c" / "1" / "0" / "0"
    chunk.write_bytes(b"\x4d" * chunk.stat().st_size)
    assert (source[6:12] == 0x4D).all()
    np.testing.assert_array_equal(source[:6][..., 0], gray[:6])


def test_damaged_chunks_are_found_when_read(tmp_path, gray, refused):
    path = tmp_path / "set.zarr"
    array(path, gray)
    (path / "c" / "1" / "0" / "0").write_bytes(b"junk")
    source = open_images(path)
    np.testing.assert_array_equal(source[:6][..., 0], gray[:6])
    with refused(path, "images 6 to 11"):
        source.read(slice(6, 12))


def test_damaged_labels(tmp_path, gray, labels, refused):
    path = tmp_path / "set.zarr"
    group(path, images=gray, labels=labels)
    (path / "labels" / "c" / "0").write_bytes(b"junk")
    with refused(path, "labels cannot be read"):
        open_images(path)
    np.testing.assert_array_equal(open_images(path, labels=labels).labels, labels)


def test_groups_without_images(tmp_path, gray, refused):
    path = tmp_path / "set.zarr"
    group(path, x=gray, y=gray)
    with refused(path, "no array images", "x, y", "::path/in/group"):
        open_images(path)
    with refused(path, "no array z"):
        open_images(path, dataset="z")


def test_a_damaged_member(tmp_path, gray, refused):
    path = tmp_path / "set.zarr"
    group(path, images=gray)
    (path / "images" / "zarr.json").write_text("{}")
    with refused(path, "zarr"):
        open_images(path)


def test_an_array_has_no_datasets(tmp_path, gray, refused):
    path = tmp_path / "set.zarr"
    array(path, gray)
    with refused(path, "one array"):
        open_images(path, dataset="images")


def test_labels_that_do_not_fit(tmp_path, gray, refused):
    path = tmp_path / "set.zarr"
    group(path, images=gray, labels=np.arange(7))
    with refused(path, "7 labels for 20 images"):
        open_images(path)


@pytest.mark.parametrize("metadata", [None, b"", b"{", b"[]", b'{"zarr_format": 3, "node_type": "array"}'])
def test_damaged_metadata(tmp_path, metadata, refused):
    path = tmp_path / "set.zarr"
    path.mkdir()
    if metadata is not None:
        (path / "zarr.json").write_bytes(metadata)
    with refused(path, "not a readable zarr", "zarr.json"):
        open_images(path)
