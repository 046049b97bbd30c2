"""`verify` finds every changed byte; sampling finds each one that it reads."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from patchindex_cli import main
from PIL import Image

import patchindex as pi
from patchindex.build import scale as stages
from patchindex.errors import InputError, PatchIndexError, StoreError
from patchindex.estimators import AutoPolicy
from patchindex.store.checksums import CURVE, read_checksummed, write_checksummed, write_manifest
from patchindex.store.raw import raw_path


@pytest.fixture(scope="module")
def whole(labelled, tmp_path_factory):
    """A store of two scales with an operating curve; samples look at one of them only."""
    path = tmp_path_factory.mktemp("whole") / "s.zarr"
    pi.build_index(labelled[0], path, scales=[3, 5], labels=labelled[1], lists=60)
    pi.open_index(path).scale(3).save_curve({"version": 0})
    return path


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


def draw(path, estimator, **options):
    """Draw by scale 3 with everything, so that all bytes of it are read."""
    machine = pi.ScoreMachine(path, estimator=estimator, locality=[3], **options)
    return pi.sample(machine, n=1, steps=2).images


def flip(path, position, bit):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def test_whole_store_has_no_problems(store):
    report = pi.verify(store.path)
    assert report.problems == ()
    assert report.whole
    assert report.patches == sum(store.scale(k).attributes["patches"] for k in store.scales)
    assert report.encoded == 2 * 1000
    assert report.bytes == sum(f.stat().st_size for f in store.path.rglob("*") if f.is_file())


def test_every_flipped_byte_is_found(copied):
    """At random positions of all files, 200 and more."""
    files = sorted(f for f in copied.rglob("*") if f.is_file())
    rng = np.random.default_rng(0)
    sizes = np.array([f.stat().st_size for f in files])
    # Each file twice, and the rest of the positions evenly over all bytes.
    which = np.concatenate(
        [np.repeat(np.arange(len(files)), 2), rng.choice(len(files), 200, p=sizes / sizes.sum())]
    )
    for i in which:
        file = files[i]
        whole = file.read_bytes()
        flip(file, int(rng.integers(len(whole))), int(rng.integers(8)))
        try:
            problems = pi.verify(copied).problems
        except PatchIndexError as error:  # the folder is no store any more
            assert file == copied / "zarr.json"
            problems = ((str(copied), str(error)),)
        assert problems, file
        file.write_bytes(whole)
    assert pi.verify(copied).whole


@pytest.mark.parametrize("estimator", ["topk", "auto"])
def test_sampling_refuses_flipped_bytes_before_it_draws(copied, estimator):
    options = {"probes": 60} | ({"policy": AutoPolicy(cost_limit=np.inf)} if estimator == "auto" else {})
    draw(copied, estimator, **options)
    rng = np.random.default_rng(1)
    mine = [copied / "manifest.json", copied / "zarr.json", *copied.glob("*/**/*")]
    files = [f for f in mine if f.is_file() and "k005" not in f.parts]
    assert len(files) > 20
    for file in files:
        whole = file.read_bytes()
        raw = file.parts[-2] == "0" or file.parent.name == "c"
        for _ in range(2):
            end = len(whole) - 4 if raw else len(whole)  # a raw file's own checksum is not read
            flip(file, int(rng.integers(end)), int(rng.integers(8)))
            with pytest.raises(PatchIndexError):
                draw(copied, estimator, **options)
            file.write_bytes(whole)
    draw(copied, estimator, **options)


def test_exact_scores_check_the_images_that_they_read(copied):
    lo, _ = pi.open_index(copied).training.range_of(4)
    file = raw_path(copied, "images", 4)
    flip(file, lo * 14 * 14, 0)
    with pytest.raises(StoreError, match="are damaged \\(checksum mismatch"):
        draw(copied, "exact", label=4)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("0", None, "is missing"), ("1", b"x", "does not belong"), ("0", bytes(2**16), "bytes, not")],
)
def test_missing_extra_and_longer_files_are_found(copied, name, content, words):
    file = copied / "scales" / "k005" / "cells" / "c" / "0" / name
    file.unlink() if content is None else file.write_bytes(content)
    assert any(words in wrong for _, wrong in pi.verify(copied).problems)


def test_missing_added_scale_and_stray_folders_are_found(copied):
    pi.add_scales(copied, [7])
    assert pi.verify(copied).whole
    (copied / "scales" / "k009.tmp").mkdir()  # one on its way
    assert pi.verify(copied).whole
    (copied / "scales" / "junk").mkdir()
    shutil.copytree(copied / "scales" / "k007", copied / "scales" / "k7")
    shutil.rmtree(copied / "scales" / "k007")
    scales = copied / "scales"
    assert pi.open_index(copied).scales == (3, 5, 7)
    assert pi.verify(copied).problems == (
        (str(scales / "k007"), "is missing"),
        (str(scales / "junk"), "does not belong to the store"),
        (str(scales / "k7"), "does not belong to the store"),
    )


@pytest.mark.parametrize("left", ["null", "{}", "", None])
def test_store_without_attributes_is_damaged(copied, left):
    if left is None:
        (copied / "zarr.json").unlink()
    else:
        (copied / "zarr.json").write_text(left)
    with pytest.raises(StoreError, match=r"zarr\.json"):
        pi.open_index(copied)
    assert any("zarr.json" in where + what for where, what in pi.verify(copied).problems)


def test_operating_curve_of_another_scale_is_refused(copied):
    curve = copied / "scales" / "k003" / CURVE
    shutil.copy(curve, copied / "scales" / "k005" / CURVE)
    with pytest.raises(StoreError, match="is of another scale"):
        pi.open_index(copied).scale(5)
    assert not pi.verify(copied).whole
    pi.tune(copied, overwrite=True)
    assert pi.verify(copied).whole


def rebuilt(labelled, path, monkeypatch, change):
    """Build a store whose patches are changed on their way into the lists: all checksums are right."""
    real = stages.Shards.merged

    def merged(self):
        for bucket in real(self):
            ids, codes = bucket.ids.copy(), bucket.codes.copy()
            change(ids, codes)
            yield bucket._replace(ids=ids, codes=codes)

    with monkeypatch.context() as patched:
        patched.setattr(stages.Shards, "merged", merged)
        pi.build_index(labelled[0], path, scales=[3], labels=labelled[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ids, codes: ids.__setitem__(0, ids[1]), ["has wrong patch ids: they must ascend"]),
        (
            lambda ids, codes: codes.__iadd__(40),
            ["1000 of 1000 patches are not found by their code, the first of image "],
        ),
        (
            lambda ids, codes: ids.__setitem__(slice(None), np.roll(np.sort(ids), 9)),
            ["has wrong patch ids"],
        ),
    ],
)
def test_wrong_lists_with_right_checksums_are_found(labelled, tmp_path, monkeypatch, change, words):
    rebuilt(labelled, tmp_path / "s.zarr", monkeypatch, change)
    found = " ".join(what for _, what in pi.verify(tmp_path / "s.zarr").problems)
    for word in words:
        assert word in found


def test_checksummed_files_show_every_flipped_bit(tmp_path):
    path = tmp_path / "a.json"
    for content in ({"b": [1, 2.5, None], "a": "ä\n"}, [], 3):
        write_checksummed(path, content)
        assert read_checksummed(path) == content
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            flip(path, position, bit)
            with pytest.raises(StoreError, match="is damaged"):
                read_checksummed(path)
            path.write_bytes(whole)
    with pytest.raises(StoreError, match="is missing"):
        read_checksummed(tmp_path / "b.json")


def test_damaged_store_is_not_sampled_at_the_command_line(copied):
    flip(copied / "source_ids" / "c" / "0", 5, 1)
    arguments = ["sample", str(copied), "-o", str(copied.parent / "out"), "--locality", "3"]
    assert CliRunner().invoke(main, arguments).exit_code == 1
    assert not (copied.parent / "out").exists()


def test_the_files_of_damaged_images_are_named(real_images, tmp_path, monkeypatch):
    monkeypatch.setattr("patchindex.store.checksums.IMAGE_BLOCK_BYTES", 2 * 12 * 12)
    (tmp_path / "files").mkdir()
    for name, image in zip("abcdef", real_images(6, 12)[0], strict=True):
        Image.fromarray(image[..., 0]).save(tmp_path / "files" / f"{name}.png")
    index = pi.build_index(tmp_path / "files", tmp_path / "s.zarr", scales=[3])
    file = raw_path(index.path, "images", 4)
    flip(file, 2 * 12 * 12, 0)
    flip(file, 5 * 12 * 12, 3)
    problems = pi.verify(index.path).problems
    assert problems[0] == (str(file), "is damaged (checksum mismatch)")
    assert [what for _, what in problems[1:]] == [
        "images 2 (c.png) to 3 (d.png) are damaged (checksum mismatch)",
        "images 4 (e.png) to 5 (f.png) are damaged (checksum mismatch)",
    ]


def test_url_is_refused():
    with pytest.raises(InputError, match="is a URL, and verify reads local folders"):
        pi.verify("s3://bucket/s.zarr")


def test_attributes_changed_by_hand_need_a_new_manifest(copied):
    zarr.open_group(copied, mode="a").attrs["note"] = "changed by hand"
    assert not pi.verify(copied).whole
    write_manifest(copied)
    assert pi.verify(copied).whole
