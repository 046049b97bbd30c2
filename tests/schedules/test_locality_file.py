"""Files of locality schedules: what is saved is loaded, and nothing else is accepted."""

from __future__ import annotations

import json

import pytest

from patchindex.errors import InputError, OutputExistsError, SourceNotFoundError
from patchindex.schedules import LocalitySchedule, Provenance, cosine

PAIRS = ((0.01, 3), (0.3, 7), (0.9, 13))
MEASURED = LocalitySchedule(
    "mine",
    PAIRS,
    Provenance("ResNet, 40 minutes", "Fashion-MNIST", (28, 28), "cosine", "median of 10 samples"),
    ((3, 3), (5, 7), (12.5, 15)),
)
GOOD = {"version": 1, **MEASURED.as_dict()}


@pytest.mark.parametrize(
    "schedule",
    [
        MEASURED,
        LocalitySchedule("bare", PAIRS),
        LocalitySchedule.of("mnist-unet-zeros"),
        LocalitySchedule.of(5),
    ],
)
def test_a_saved_schedule_is_loaded_as_it_was(schedule, tmp_path):
    path = tmp_path / "k.json"
    schedule.save(path)
    assert LocalitySchedule.load(path) == schedule
    assert LocalitySchedule.of(path) == LocalitySchedule.of(str(path)) == schedule
    assert [file.name for file in tmp_path.iterdir()] == ["k.json"]


def test_an_existing_file_is_replaced_only_on_request(tmp_path):
    path = tmp_path / "k.json"
    MEASURED.save(path)
    with pytest.raises(OutputExistsError, match=r"k.json: exists; use another name, or overwrite=True"):
        LocalitySchedule.of(5).save(path)
    assert LocalitySchedule.load(path) == MEASURED
    LocalitySchedule.of(5).save(path, overwrite=True)
    assert LocalitySchedule.load(path).scales == (5,)


def test_a_name_that_is_too_long_is_refused():
    path = "x" * 300 + ".json"
    for use in (LocalitySchedule.load, LocalitySchedule.of, LocalitySchedule.of(3).save):
        with pytest.raises(InputError, match=r"\.json: cannot be accessed \(File name too long\)"):
            use(path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(SourceNotFoundError, match=r"none: no such folder; make it, or use another path"):
        MEASURED.save(tmp_path / "none" / "k.json")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named():
    with pytest.raises(SourceNotFoundError, match=r"none.json: no such file"):
        LocalitySchedule.of("none.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "has version 2; this release reads 1"),
        ({"name": ""}, "has no name"),
        ({"scales": [3]}, "has an unknown field 'scales'"),
        ({"pairs": None}, r"pairs must be a list of \[beta, k\]"),
        ({"pairs": []}, r"pairs must be a list of \[beta, k\]"),
        ({"pairs": [[0.5]]}, r"pairs must be a list of \[beta, k\]"),
        ({"pairs": [[0.5, 4]]}, "k must be odd and at least 1, got 4 in pair 1"),
        ({"pairs": [[0.5, -3]]}, "k must be odd and at least 1, got -3 in pair 1"),
        ({"pairs": [[0.5, "3"]]}, "k must be odd and at least 1, got '3' in pair 1"),
        ({"pairs": [[0.5, True]]}, "k must be odd and at least 1, got True in pair 1"),
        ({"pairs": [[0.0, 3]]}, r"beta must lie in \(0, 1\), got 0.0 in pair 1"),
        ({"pairs": [[0.2, 3], [1, 5]]}, r"beta must lie in \(0, 1\), got 1 in pair 2"),
        ({"pairs": [[float("nan"), 3]]}, r"beta must lie in \(0, 1\), got nan in pair 1"),
        ({"pairs": [[0.5, 10**400 + 1]]}, "k must be odd and at least 1"),
        ({"pairs": [[10**400, 3]]}, r"beta must lie in \(0, 1\)"),
        ({"pairs": [[0.5, float("inf")]]}, "k must be odd and at least 1, got inf in pair 1"),
        ({"pairs": [[0.5, 3], [0.2, 5]]}, "beta must increase from pair to pair, got 0.2 after 0.5"),
        ({"pairs": [[0.5, 3], [0.5, 5]]}, "beta must increase from pair to pair, got 0.5 after 0.5"),
        ({"quartiles": [[3, 3]]}, "quartiles must be 3 pairs"),
        ({"quartiles": [[3, 3], [7, 5], [1, 2]]}, r"quartiles must ascend from 1, got \[7, 5\] in pair 2"),
        ({"quartiles": [[3, 3], [5, float("nan")], [1, 2]]}, "quartiles must ascend from 1"),
        ({"provenance": "a network"}, "provenance must have the fields network, data, image_size"),
        ({"provenance": {"net": ""}}, "provenance must have the fields network, data, image_size"),
        ({"provenance": {"network": 3}}, "network must be text, got 3"),
        ({"provenance": {"image_size": [28]}}, r"image_size must be two numbers of pixels, got \[28\]"),
        ({"provenance": {"image_size": [28, 0]}}, "image_size must be two numbers of pixels"),
        ({"provenance": {"image_size": 28}}, "image_size must be two numbers of pixels, got 28"),
    ],
)
def test_a_file_of_another_form_is_refused_with_its_name(change, words, tmp_path):
    path = tmp_path / "k.json"
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(InputError, match=f"k.json: {words}") as caught:
        LocalitySchedule.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[3, 5]", "3", "\xff\x00", '{"pairs": [[0.5, 3]]}'])
def test_a_file_that_is_no_schedule_is_refused(content, tmp_path):
    path = tmp_path / "k.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"k.json: (is not JSON|has version None)"):
        LocalitySchedule.load(path)


def test_a_file_that_is_too_large_is_refused(tmp_path):
    path = tmp_path / "k.json"
    path.write_bytes(json.dumps(GOOD).encode() + b" " * (1 << 22))
    with pytest.raises(InputError, match=r"k\.json: holds more than 4,194,304 bytes; give a file that"):
        LocalitySchedule.load(path)


def test_scales_by_time_are_not_read_from_a_file(tmp_path):
    (tmp_path / "k.json").write_text('{"version": 1, "name": "old", "scales": [3, 5]}')
    with pytest.raises(InputError, match=r"k.json: has an unknown field 'scales'"):
        LocalitySchedule.load(tmp_path / "k.json")


@pytest.mark.parametrize(
    ("name", "scales", "words"),
    [
        ("x", 5, "scales must be a list of scales"),
        ("x", "35", "scales must be a list of scales"),
        ("x", [], "the schedule is empty"),
        ("x", [3, [5]], r"k must be odd and at least 1, got \[5\]"),
        (["x"], [3, 5], "has no name"),
    ],
)
def test_scales_by_time_of_another_form_are_refused(name, scales, words):
    with pytest.raises(InputError, match=f"s.json: {words}"):
        LocalitySchedule.from_dict({"name": name, "scales": scales}, "s.json")


def test_scales_by_time_of_earlier_stores_are_read():
    found = LocalitySchedule.from_dict({"name": "custom", "scales": [9, 3, 5, 7]})
    assert found == LocalitySchedule.of([9, 3, 5, 7])
    assert found.pairs[0] == (cosine(0.25), 3)
    preset = LocalitySchedule.of("mnist-unet-zeros")
    kept = {"name": "mnist-unet-zeros", "scales": [3, *preset.scales]}
    assert LocalitySchedule.from_dict(kept) == preset
    moved = LocalitySchedule.from_dict({"name": "mnist-unet-zeros/nearest-3-5", "scales": [3, 3, 5, 5]})
    assert (moved.name, moved.provenance) == ("mnist-unet-zeros/nearest-3-5", None)
