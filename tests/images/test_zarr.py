import fsspec
import numpy as np
import pytest
import zarr
from fsspec.implementations.memory import MemoryFileSystem

from patchindex.errors import InputError
from patchindex.images import open_images


def group(store, **arrays):
    root = zarr.open_group(store, mode="w")
    for name, images in arrays.items():
        root.create_array(name.replace("__", "/"), data=images, chunks=(6, *images.shape[1:]))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "set.zarr"


def test_a_nested_array_is_chosen_by_name(path, gray, rgb, labels):
    group(path, train__x=rgb, train__labels=labels, test__x=gray)
    for source in (
        open_images(path, dataset="train/x"),
        open_images(path, dataset="/train/x"),
        open_images(f"{path}::train/x"),
    ):
        np.testing.assert_array_equal(source[:], rgb)
        np.testing.assert_array_equal(source.labels, labels)
    assert open_images(f"{path}::test/x").labels is None


def test_damaged_chunks_are_refused(path, gray, labels, refused):
    group(path, images=gray, labels=labels)
    (path / "images" / "c" / "1" / "0" / "0").write_bytes(b"junk")
    source = open_images(path)
    np.testing.assert_array_equal(source[:6][..., 0], gray[:6])
    with refused(path, "images 6 to 11"):
        source.read(slice(6, 12))
    (path / "labels" / "c" / "0").write_bytes(b"junk")
    with refused(path, "labels cannot be read"):
        open_images(path)
    np.testing.assert_array_equal(open_images(path, labels=labels).labels, labels)


def test_other_groups_and_arrays_are_refused(path, gray, refused):
    group(path, x=gray, y=gray)
    with refused(path, "no array images", "x, y", "::path/in/group"):
        open_images(path)
    with refused(path, "no array z"):
        open_images(path, dataset="z")
    with refused(path / "x", "one array"):
        open_images(path / "x", dataset="images")
    (path / "x" / "zarr.json").write_text("{}")
    with refused(path, "zarr"):
        open_images(path, dataset="x")


@pytest.mark.parametrize("metadata", [None, b"", b"{", b"[]", b'{"zarr_format": 3, "node_type": "array"}'])
def test_damaged_metadata_is_refused(path, metadata, refused):
    path.mkdir()
    if metadata is not None:
        (path / "zarr.json").write_bytes(metadata)
    with refused(path, "not a readable zarr", "zarr.json"):
        open_images(path)


class Unreachable(Exception):  # noqa: N818
    """An error of no builtin type, as botocore raises."""


class Network(MemoryFileSystem):
    """A file system in memory that can lose its connection."""

    protocol = "network"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    lost = False

    @classmethod
    def _strip_protocol(cls, path):
        if cls.lost:
            raise Unreachable("Could not connect\nto the endpoint")
        return super()._strip_protocol(path.removeprefix("network:/"))


fsspec.register_implementation("network", Network, clobber=True)


@pytest.fixture
def url(gray, labels):
    Network.lost = False
    group(zarr.storage.FsspecStore.from_url("network://far.zarr"), images=gray, labels=labels)
    yield "network://far.zarr"
    Network.lost = False
    fsspec.filesystem("network").rm("far.zarr", recursive=True)


def test_a_group_is_opened_at_a_url(url, gray, labels, refused):
    source = open_images(url, limit=15)
    np.testing.assert_array_equal(source[:][..., 0], gray[:15])
    np.testing.assert_array_equal(source.labels, labels[:15])
    with refused(url, "has no splits"):
        open_images(url, split="test")
    with refused("network://none.zarr", "not a readable zarr"):
        open_images("network://none.zarr")
    with refused("nothing://x: "):
        open_images("nothing://x")


def test_a_lost_connection_is_named_as_the_cause(url, gray, refused):
    source = open_images(url)
    Network.lost = True
    for read in (lambda: open_images(url), lambda: source[:]):
        with refused("far.zarr", "(Could not connect)"):
            read()
    Network.lost = False
    np.testing.assert_array_equal(source[:][..., 0], gray)


def test_a_dead_endpoint_is_refused(monkeypatch):
    pytest.importorskip("s3fs")
    settings = {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s"}
    for name, value in {**settings, "MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(InputError, match=r"s3://none/set\.zarr: .*; .*check the network and the credentials"):
        open_images("s3://none/set.zarr")
