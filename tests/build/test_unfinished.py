"""The state of an unfinished build."""

from __future__ import annotations

import pytest
from stores import interrupted

import patchindex as pi
from patchindex.build import unfinished_build
from patchindex.build.workdir import locked
from patchindex.errors import StoreError
from patchindex.store.checksums import read_checksummed, write_checksummed


@pytest.mark.parametrize(
    ("at", "written", "stages"),
    [
        ("images", False, [("train", None), ("train", None)]),
        ("k = 3: training", True, [("train", None), ("train", None)]),
        ("k = 3: assigning", True, [("encode", 1), ("train", None)]),
        ("k = 3: merging", True, [("merge", 4), ("train", None)]),
        ("k = 5: merging", True, [("done", None), ("merge", 4)]),
    ],
)
def test_the_stages_of_an_interrupted_build(labelled, tmp_path, small_shards, at, written, stages):
    path = tmp_path / "s.zarr"
    interrupted(pi.build_index, labelled[0], path, [3, 5], at=at, after=1 if "assigning" in at else 0)
    state = unfinished_build(path)
    assert (state.kind, state.images, state.images_written, state.running) == ("build", 40, written, False)
    found = [(scale.stage, scale.encoded) for scale in state.scales]
    assert [stage for stage, _ in found] == [stage for stage, _ in stages]
    for scale in state.scales:
        assert scale.encoded is None or 0 < scale.encoded <= scale.shards
        assert (scale.encoded == scale.shards) == (scale.stage == "merge" or scale.encoded is None)
    with locked(path):
        assert unfinished_build(path).running
    pi.build_index(labelled[0], path, [3, 5], resume=True)
    assert unfinished_build(path) is None


def test_an_interrupted_append_names_the_new_images(labelled, tmp_path):
    path = tmp_path / "s.zarr"
    pi.build_index(labelled[0][:30], path, [3])
    interrupted(pi.append, path, labelled[0][30:], at="k = 3: merging")
    state = unfinished_build(path)
    assert (state.kind, state.images, state.source) == ("append", 40, "array")
    assert (state.scales[0].encoded, state.scales[0].shards) == (1, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shape", [40, 14, 14]),
        ("shape", [2**50, 14, 14, 1]),
        ("scales", [99]),
        ("machine", "LSD"),
        ("source", 3),
    ],
)
def test_settings_that_no_build_writes_are_refused(labelled, tmp_path, name, value):
    path = tmp_path / "s.zarr"
    interrupted(pi.build_index, labelled[0], path, [3], at="k = 3: merging")
    file = tmp_path / "s.zarr.building" / "settings.json"
    write_checksummed(file, read_checksummed(file) | {name: value})
    with pytest.raises(StoreError):
        unfinished_build(path)
