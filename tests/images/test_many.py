"""Many files: zip archives, files that cannot be decoded, several sources at once, URLs, data set objects."""

from __future__ import annotations

import zipfile

import h5py
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from patchindex_cli import main
from PIL import Image

import patchindex as pi
from patchindex.errors import InputError, SourceNotFoundError


@pytest.fixture
def photos(real_images, tmp_path):
    """Forty images in folders of their class, as PNG."""
    images, labels = real_images(40, 14, classes=(1, 4))
    root = tmp_path / "photos"
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (root / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[:, :, 0]).save(root / str(label) / f"{i:03d}.png")
    return root


# Zip archives.


def test_a_zip_archive_is_the_folder_in_it(photos, tmp_path):
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(photos.rglob("*.png")):
            file.write(path, path.relative_to(photos))
        file.writestr("__MACOSX/1/._000.png", b"what a Mac leaves")
        file.writestr("1/.hidden.png", b"hidden")
        file.writestr("readme.txt", b"no image")
    zipped, plain = (pi.open_images(path, labels="folders") for path in (archive, photos))
    assert zipped.shape == plain.shape == (40, 14, 14, 1)
    assert zipped.label_names == plain.label_names == ("1", "4")
    np.testing.assert_array_equal(zipped[:], plain[:])
    np.testing.assert_array_equal(zipped.labels, plain.labels)


def test_names_in_archives(photos, tmp_path):
    """As `zip -r a.zip ./photos`, and as Windows writes them; entries that were written again count once."""
    plain = pi.open_images(photos, labels="folders")
    for i, before in enumerate(("./", "", "/")):
        archive = tmp_path / f"{i}.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for name in plain.names:
                inside = f"photos/{name}" if before else f"photos/{name}".replace("/", "\\")
                file.writestr(before + inside, (photos / name).read_bytes())
            file.writestr("photos/.ipynb_checkpoints/1.png", b"hidden")
            file.writestr("photos/__MACOSX/1.png", b"what a Mac leaves")
        zipped = pi.open_images(archive, labels="folders")
        assert zipped.names == tuple(f"photos/{name}" for name in plain.names)
        assert zipped.label_names == plain.label_names
        np.testing.assert_array_equal(zipped[:], plain[:])
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(archive, "a") as file:
        file.writestr(f"/photos/{plain.names[0]}", (photos / plain.names[1]).read_bytes())
    again = pi.open_images(archive)
    assert len(again) == 40
    np.testing.assert_array_equal(again[0], plain[1])


def test_a_damaged_archive(photos, tmp_path):
    archive = tmp_path / "a.zip"
    archive.write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(InputError, match="not a readable zip archive"):
        pi.open_images(archive)
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(photos.rglob("*.png")):
            file.write(path, path.relative_to(photos))
    data = bytearray(archive.read_bytes())
    data[data.index(b"IDAT") + 10] ^= 255  # in the middle of the first image: its checksum does not fit
    archive.write_bytes(data)
    with pytest.raises(InputError, match=r"1/.*png: not a readable image"):
        pi.open_images(archive)[:]


# Files that cannot be decoded.


def damage(photos):
    """Cut one file off, and make another no image at all."""
    some = sorted(photos.rglob("*.png"))
    some[3].write_bytes(some[3].read_bytes()[:100])
    some[20].write_text("not an image")
    return [path.relative_to(photos).as_posix() for path in (some[3], some[20])]


def test_bad_files_are_named_and_skipped_only_when_asked(photos, tmp_path):
    bad = damage(photos)
    with pytest.raises(InputError, match="skip_bad=True"):
        pi.open_images(photos)[:]
    source = pi.open_images(photos, skip_bad=True, labels="folders")
    assert source.skipped == tuple(bad)
    assert len(source) == len(source.labels) == 38
    assert len(source[:]) == 38
    assert pi.open_images(photos, skip_bad=True, resize=7, limit=5).skipped == tuple(bad)


def test_bad_files_at_the_command_line(photos, tmp_path):
    bad = damage(photos)

    def build(*more):
        command = ("build", photos, "-o", tmp_path / "s.zarr", "--scales", "3", "--no-tune", *more)
        return CliRunner().invoke(main, list(map(str, command)))

    refused = build()
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "s.zarr").exists()
    built = build("--skip-bad")
    assert built.exit_code == 0, built.output
    assert f"2 files left out that cannot be decoded: {bad[0]}, {bad[1]}" in built.stderr
    index = pi.open_index(tmp_path / "s.zarr")
    assert len(index.training) == 38
    assert index.attributes["skipped"] == bad


def test_nothing_but_bad_files(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(InputError, match="none of 1 images can be read"):
        pi.open_images(tmp_path, skip_bad=True)


# Several at once.


def test_several_files_are_one_source(real_images, tmp_path):
    images, labels = real_images(30, 14)
    for i in range(3):
        with h5py.File(tmp_path / f"part-{i}.h5", "w") as file:
            rows = slice(10 * i, 10 * i + 10)
            file["images"], file["labels"] = images[rows], labels[rows]
    paths = [tmp_path / f"part-{i}.h5" for i in range(3)]
    for source in (pi.open_images(paths), pi.open_images(str(tmp_path / "part-*.h5"))):
        assert source.shape == (30, 14, 14, 1)
        np.testing.assert_array_equal(source[:], images)
        np.testing.assert_array_equal(source.read([29, 3, 10, 10]), images[[29, 3, 10, 10]])
        np.testing.assert_array_equal(source.labels, labels)
        assert source.name.endswith("part-0.h5 and 2 more")
    half = pi.open_images(paths, resize=7, limit=12)
    assert half.shape == (12, 7, 7, 1)


def test_sources_that_do_not_fit_together(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8), np.uint8))
    np.savez(tmp_path / "b.npz", images=np.zeros((2, 9, 9), np.uint8))
    np.savez(tmp_path / "c.npz", images=np.zeros((2, 8, 8), np.uint8), labels=[1, 2])
    for other, words in (
        ("b", r"b.npz: images have shape \(9, 9, 1\)"),
        ("c", "c.npz: images have labels, unlike"),
    ):
        with pytest.raises(InputError, match=words):
            pi.open_images([tmp_path / "a.npz", tmp_path / f"{other}.npz"])
    with pytest.raises(SourceNotFoundError, match="no path matches"):
        pi.open_images(str(tmp_path / "x-*.npz"))


# URLs.


def test_a_zarr_array_at_a_url(real_images):
    import fsspec

    images, labels = real_images(20, 14)
    store = zarr.storage.FsspecStore.from_url("memory://set.zarr")
    group = zarr.open_group(store, mode="w")
    group.create_array("images", data=images, chunks=(6, 14, 14, 1))
    group.create_array("labels", data=labels)
    source = pi.open_images("memory://set.zarr", limit=15)
    assert source.shape == (15, 14, 14, 1)
    np.testing.assert_array_equal(source[:], images[:15])
    np.testing.assert_array_equal(source.labels, labels[:15])
    fsspec.filesystem("memory").rm("set.zarr", recursive=True)
    for url, words in (("memory://none.zarr", "not a readable zarr"), ("nothing://x", "nothing://x: ")):
        with pytest.raises(InputError, match=words):
            pi.open_images(url)


class Unreachable(Exception):  # noqa: N818
    """As botocore's: of no builtin kind."""


def test_a_url_that_is_not_reached(real_images, monkeypatch):
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    group = zarr.open_group(zarr.storage.FsspecStore.from_url("memory://far.zarr"), mode="w")
    group.create_array("images", data=real_images(20, 14)[0], chunks=(6, 14, 14, 1))
    source = pi.open_images("memory://far.zarr")

    def unreachable(*_, **__):
        raise Unreachable("Could not connect\nto the endpoint")

    with monkeypatch.context() as no_network:
        no_network.setattr(MemoryFileSystem, "_strip_protocol", unreachable)
        for read in (lambda: pi.open_images("memory://far.zarr"), lambda: source[:]):
            with pytest.raises(InputError, match=r"memory://far\.zarr: .*\(Could not connect\)") as caught:
                read()
            assert "\n" not in str(caught.value)
    assert source[:].shape == (20, 14, 14, 1)
    with pytest.raises(InputError, match=r"memory://far\.zarr: has no splits"):
        pi.open_images("memory://far.zarr", split="test")
    fsspec.filesystem("memory").rm("far.zarr", recursive=True)


def test_an_endpoint_that_is_dead(monkeypatch):
    pytest.importorskip("s3fs")
    settings = {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s"}
    for name, value in {**settings, "MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(InputError, match=r"s3://none/set\.zarr: .*; .*check the network and the credentials"):
        pi.open_images("s3://none/set.zarr")
