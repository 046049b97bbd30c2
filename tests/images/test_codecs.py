"""Pickled objects, programs, and codecs and types that are not for numbers are never loaded."""

import json
import os

import numpy as np
import pytest
import zarr

from patchindex.images import open_images

pytestmark = pytest.mark.usefixtures("deadline")


class Payload:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_pickled_objects_are_never_loaded(write_metadata, tmp_path, refused):
    import pickle

    payload = np.array([Payload(tmp_path / "ran")], object)
    np.save(tmp_path / "a.npy", payload, allow_pickle=True)
    np.savez(tmp_path / "a.npz", images=payload)
    np.savez(tmp_path / "b.npz", images=np.zeros((1, 4, 4), np.uint8), labels=payload)
    for version in (2, 3):
        write_metadata(tmp_path / f"{version}.zarr", version)
    array = tmp_path / "2.zarr" / ".zarray"
    metadata = json.loads(array.read_text())
    metadata |= {"dtype": "|O", "filters": [{"id": "pickle"}], "compressor": None, "fill_value": None}
    array.write_text(json.dumps(metadata))
    for chunk in (tmp_path / "2.zarr").glob("[0-9]*"):
        chunk.write_bytes(pickle.dumps(payload))
    metadata = json.loads((tmp_path / "3.zarr" / "zarr.json").read_text())
    metadata["codecs"].append({"name": "numcodecs.pickle", "configuration": {}})
    (tmp_path / "3.zarr" / "zarr.json").write_text(json.dumps(metadata))
    for name in ("a.npy", "a.npz", "b.npz", "2.zarr", "3.zarr"):
        with refused(name):
            open_images(tmp_path / name)[:]
    for name in ("a.npy", "b.npz"):
        with refused(name, "Python objects"):
            open_images(np.zeros((1, 4, 4), np.uint8), labels=tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("version", "changes", "words"),
    [
        (2, {"compressor": {"id": "bz2", "level": 1}}, "codec bz2"),
        (2, {"filters": [{"id": "json2"}], "dtype": "|O", "fill_value": ""}, ""),
        (2, {"filters": [{"id": "pickle"}]}, "pickle"),
        (2, {"dtype": [["a", "|O"]]}, ""),
        (2, {"dtype": "|S4", "fill_value": ""}, "dtype"),
        (3, {"data_type": "string", "fill_value": ""}, ""),
        (3, {"codecs": [{"name": "vlen-utf8"}]}, ""),
        (3, {"codecs": [{"name": "numcodecs.zlib", "configuration": {"level": 1}}]}, ""),
        (3, {"data_type": {"name": "fixed_length_utf32", "configuration": {"length_bytes": 4}}}, ""),
    ],
)
@pytest.mark.filterwarnings("ignore")  # zarr warns of codecs that are not in its specification
def test_types_and_codecs_that_are_not_for_numbers_are_refused(
    write_metadata, version, changes, words, tmp_path, refused
):
    write_metadata(tmp_path / "a.zarr", version, **changes)
    with refused("a.zarr", words):
        open_images(tmp_path / "a.zarr")[:]


@pytest.mark.parametrize("codec", ["blosc", "zlib", "gzip", "zstd", "lz4"])
def test_usual_codecs_of_zarr_2_are_read(codec, tmp_path, gray):
    import numcodecs

    compressor = numcodecs.get_codec({"id": codec})
    zarr.create_array(str(tmp_path / "a.zarr"), data=gray, zarr_format=2, compressors=compressor)
    np.testing.assert_array_equal(open_images(tmp_path / "a.zarr")[:][..., 0], gray)


def test_usual_codecs_of_zarr_3_are_read(tmp_path, gray):
    codecs = zarr.codecs
    for i, pack in enumerate([codecs.BloscCodec(), codecs.GzipCodec(), codecs.ZstdCodec(checksum=True)]):
        settings = {"chunks": (2, 28, 28), "shards": (10, 28, 28)} if i else {}
        packs = [pack, codecs.Crc32cCodec()]
        filters = [codecs.TransposeCodec(order=(1, 0, 2))]
        zarr.create_array(
            str(tmp_path / f"{i}.zarr"), data=gray, filters=filters, compressors=packs, **settings
        )
        np.testing.assert_array_equal(open_images(tmp_path / f"{i}.zarr")[:][..., 0], gray)


def test_a_picture_that_runs_a_program_is_not_an_image(tmp_path, refused):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\nshowpage\n%%EOF\n"
    )
    with refused(tmp_path / "a.png", "not a readable image", "cannot identify"):
        open_images(tmp_path)[:]
