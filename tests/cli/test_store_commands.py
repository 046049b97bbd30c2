"""`patchindex append`, `tune`, `info` and `verify`."""

import json

import numpy as np
import pytest
from commands import refused, run
from forged_uses import a_curve
from PIL import Image
from stores import interrupted

import patchindex as pi


def test_append_reports_the_added_images_and_their_drift(copied, fashion, tmp_path):
    more = tmp_path / "more.npz"
    np.savez(more, images=fashion[0][40:50], labels=fashion[1][40:50])
    done = run("append", copied, more, "--no-tune").stdout
    assert "50 images (10 added), " in done
    assert done.count(" than the training patches, in squared distance (fine below 20 %)") == 3
    assert "no new image is equal to an image of the store or to another new image\n" in done
    assert json.loads(run("append", copied, more, "--no-tune", "--json").stdout)["added"] == 10
    later = run("build", "--add-scales", "9", "-o", copied, "--no-tune").stdout
    assert "60 images, " in later
    assert " added)" not in later
    assert "new patches" not in later
    printed = run("info", copied).stdout
    assert f"appended    10 from {more}, 10 from {more} (10 duplicates)" in printed
    assert printed.count("k = 3: 10 appended images: ") == 2


def test_drift_without_a_distance_has_the_codes_only(tmp_path):
    np.save(tmp_path / "flat.npy", np.full((8, 8, 8), 50, np.uint8))
    run("build", tmp_path / "flat.npy", "-o", tmp_path / "s.zarr", "--locality", "3,3", "--no-tune")
    done = run("append", tmp_path / "s.zarr", tmp_path / "flat.npy", "--no-tune").stdout
    assert "k = 3: new patches: 0 % of code values out of range (fine below 1 %)\n" in done


def test_images_that_differ_too_much_ask_for_a_new_build(copied, tmp_path):
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8))
    done = run("append", copied, tmp_path / "noise.npy", "--labels", _zeros(tmp_path), "--no-tune").stdout
    assert done.count(": build the store again\n") == 3


def test_append_takes_the_image_options_of_the_build(fashion, tmp_path):
    for part in ("old", "new"):
        for label in ("bag", "shoe"):
            (tmp_path / part / label).mkdir(parents=True)
            for i, image in enumerate(fashion[0][:2]):
                Image.fromarray(image[:, i:]).save(tmp_path / part / label / f"{part}{i}.png")
    store = tmp_path / "s.zarr"
    way = ("--crop", "square", "--resize", 12, "--labels", "folders")
    run("build", tmp_path / "old", "-o", store, "--locality", "3,3", "--no-tune", *way)
    done = run("append", store, tmp_path / "new", "--no-tune")
    assert "as in the build: --crop square --resize 12 --labels folders\n" in done.stderr
    assert "4 of 4 new images equal an image of the store, and 0 more " in done.stdout
    done = run("append", store, tmp_path / "new", "--no-tune", "--crop", 20)
    assert "as in the build: --resize 12 --labels folders\n" in done.stderr
    assert "2 of 4 new images equal an earlier" not in done.stdout
    wrong = run("append", store, tmp_path / "new", "--resize", 10, code=2)
    assert "images have shape (10, 10, 1), unlike" in wrong.stderr


def _zeros(folder):
    np.save(folder / "labels.npy", np.zeros(5, np.int64))
    return folder / "labels.npy"


def test_tune_measures_untuned_scales(copied):
    (copied / "scales" / "k005" / "operating_curve.json").unlink()
    assert "not tuned: k = 5; exact scores take less time" in run("info", copied).stdout
    one = ("--threads", 1)
    assert json.loads(run("tune", copied, "--json", *one).stdout)["measured"] == [5]
    printed = run("info", copied).stdout
    assert "not tuned" not in printed
    assert "expected seconds per image of 20 steps" in printed
    assert "nothing to do: all scales are tuned" in run("tune", copied).stdout
    assert "tuned k = 3, 5, 7" in run("tune", copied, "--overwrite", *one).stdout
    assert "no such store" in refused("tune", copied / "none")


def test_tune_has_nothing_to_do_without_an_index(source, tmp_path):
    run("build", source, "-o", tmp_path / "s.zarr", "--machine", "IS")
    assert "the store has no index" in run("tune", tmp_path / "s.zarr").stdout


def test_info_has_the_same_numbers_in_json_and_in_the_tables(store):
    found = json.loads(run("info", store, "--json").stdout)
    assert found["scales"] == [3, 5, 7]
    assert found["indexes"]["5"]["patches"] == 40 * 24 * 24
    printed = run("info", store).stdout
    assert found["fingerprint"] in printed
    assert f"{40 * 24 * 24:,}" in printed


def test_verify_counts_files_and_lists_problems(copied):
    assert f"{copied}: checked " in run("verify", copied).stdout
    file = copied / "scales/k005/centroids/c/0/0"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    result = run("verify", copied, code=1)
    assert str(file) in result.stdout
    assert "found 1 problem; build the store again, or restore it from a copy" in result.stderr
    assert json.loads(run("verify", copied, "--json", code=1).stdout)["whole"] is False


@pytest.fixture(scope="module")
def named(fashion, tmp_path_factory):
    """A store of two folders of images with named labels and damaged files, and the output of its build."""
    photos = tmp_path_factory.mktemp("photos")
    for label in ("bag, small", "shoe"):
        (photos / label).mkdir()
        for i, image in enumerate(fashion[0][:2]):
            Image.fromarray(image).save(photos / label / f"{i}.png")
    for i in range(12):
        (photos / "shoe" / f"bad{i:02d}.png").write_text("no image")
    store = tmp_path_factory.mktemp("named") / "s.zarr"
    build = ("build", photos, "-o", store, "--locality", "3,3", "--no-tune")
    return store, run(*build, "--skip-bad", "--labels", "folders")


def test_info_has_skipped_files_and_names_of_labels(named):
    store, built = named
    assert "4 images, 2,704 patches at 1 scale, " in built.stdout
    assert "skipped 12 files that cannot be decoded: shoe/bad00.png, " in built.stderr
    printed = run("info", store).stdout
    assert "skipped     12 files that cannot be decoded: shoe/bad00.png, " in printed
    assert "shoe/bad09.png, ...\n" in printed
    assert "labels      0 bag, small; 1 shoe\n" in printed


def test_a_label_is_given_by_number_or_name(named, store, tmp_path):
    for label in ("shoe", "1"):
        args = ("-n", 1, "--steps", 2, "-o", tmp_path / label, "--label", label)
        run("sample", named[0], *args)
        assert json.loads((tmp_path / label / "samples.json").read_text())["settings"]["label"] == 1
    args = ("--steps", 2, "-o", tmp_path / "study", "--estimator", "topk:candidates=8")
    run("study", named[0], *args, "--label", "bag, small")
    assert json.loads((tmp_path / "study" / "study.json").read_text())["settings"]["label"] == 0
    out = ("-o", tmp_path / "out", "--label", "hat")
    for command in ("sample", "study"):
        assert "--label: the store has no label called 'hat'; use one of: bag, small; shoe" in refused(
            command, named[0], *out
        )
        assert "called 'hat'; use one of: 0; 1; 2; " in refused(command, store, *out)


def test_info_of_an_unfinished_build_says_how_far_it_is(fashion, tmp_path):
    store = tmp_path / "s.zarr"
    interrupted(pi.build_index, fashion[0][:10, :12, :12], store, [3, 5], at="k = 5: merging")
    printed = run("info", store).stdout
    assert f"{store}.building: build of 10 images, with array, is unfinished\n" in printed
    assert (
        "scales: 1 of 2 done\n  k = 3: done\n  k = 5: trained; 1 of 1 shard encoded; not merged\n" in printed
    )
    assert f"continue: patchindex build SOURCE -o {store} --resume, " in printed
    found = json.loads(run("info", store, "--json").stdout)["unfinished"]
    assert [scale["stage"] for scale in found["scales"]] == ["done", "merge"]
    assert "is unfinished; plot the finished store" in refused("info", store, "--plot", tmp_path / "s.png")


def test_info_draws_the_scales_and_the_curves(fashion, tmp_path):
    store = tmp_path / "s.zarr"
    index = pi.build_index(fashion[0][:24, :12, :12], store, [3, 5])
    run("info", store, "--plot", tmp_path / "plain.svg")
    index.scale(3).save_curve(a_curve())
    run("info", store, "--plot", tmp_path / "s.svg")
    assert "time per pixel" not in (tmp_path / "plain.svg").read_text()
    assert "time per pixel" in (tmp_path / "s.svg").read_text()
    assert "exists already" in refused("info", store, "--plot", tmp_path / "s.svg")
    assert "is no name of a picture" in refused("info", store, "--plot", tmp_path / "s.txt")


@pytest.mark.parametrize("machine", ["IS", "LS"])
def test_stores_of_is_and_ls_work_with_all_defaults(machine, fashion, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels = fashion[0][:24, 8:20, 8:20], fashion[1][:24]
    np.savez("images.npz", images=images[:20], labels=labels[:20])
    np.savez("more.npz", images=images[20:], labels=labels[20:])
    run("build", "images.npz", "-o", "s.zarr", "--machine", machine)
    run("append", "s.zarr", "more.npz")
    run("tune", "s.zarr")
    run("verify", "s.zarr")
    assert machine in run("info", "s.zarr").stdout
    run("sample", "s.zarr", "-n", 2, "-o", "samples")
    run("explain", "samples", "-o", "explained")
    run("originality", "samples/samples.npz", "s.zarr", "-o", "originality")
    run("study", "s.zarr", "-n", 1, "-o", "study")
    np.savez("all.npz", images=images, labels=labels)
    run("train", "all.npz", "-o", "run", "--channels", 16, "--layers", 1, "--steps", 2)
    run("calibrate", "s.zarr", "-n", 2, "-o", "scales")
    run("compare", "s.zarr", "--network", "run", "-n", 2, "--network-steps", 3, "-o", "compared")
