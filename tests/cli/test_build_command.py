"""`patchindex build`: options, --dry-run, --add-scales, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
import zarr
from commands import DATA, refused, run

import patchindex as pi
from patchindex.store.checksums import write_checksummed


def modified(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_without_a_terminal_build_prints_one_line(tmp_path):
    result = run("build", DATA, "-o", tmp_path / "s.zarr", "--limit", 20, "--locality", "3,3", "--no-tune")
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == 1
    assert "20 images, 13,520 patches at 1 scale, " in result.stdout


def test_few_images_are_not_tuned_unless_asked_and_resume_adds_it(store, tmp_path):
    args = ("build", DATA, "-o", tmp_path / "s.zarr", "--limit", 20, "--scales", "3")
    line = "not tuned: exact scores take less time than estimators for so few images; --tune measures "
    assert line in run(*args).stderr
    assert (
        "operating_curve" not in json.loads(run("info", tmp_path / "s.zarr", "--json").stdout)["indexes"]["3"]
    )
    assert "not tuned: k = 3; exact scores take less time" in run("info", tmp_path / "s.zarr").stdout
    run(*args, "--resume", "--tune")
    assert "operating curve: microseconds" in run("info", tmp_path / "s.zarr").stdout
    before = modified(tmp_path)
    run(*args, "--resume")
    assert modified(tmp_path) == before
    curve = json.loads(run("info", store, "--json").stdout)["indexes"]["3"]["operating_curve"]
    assert curve["images"] == 40


@pytest.fixture
def broken(tmp_path):
    """A folder of inputs that a build refuses."""
    folder = tmp_path
    images = np.zeros((6, 12, 12), np.uint8)
    np.savez(folder / "good.npz", images=images)
    np.save(folder / "int64.npy", images.astype(np.int64))
    floats = images.astype(np.float32)
    floats[2, 3, 4] = np.nan
    np.save(folder / "nan.npy", floats)
    np.save(folder / "labels.npy", np.arange(5))
    (folder / "truncated.npz").write_bytes((folder / "good.npz").read_bytes()[:-200])
    (folder / "text.npz").write_text("these are no images\n")
    (folder / "empty").mkdir()
    (folder / "taken").mkdir()
    (folder / "taken" / "mine.txt").write_text("keep me")
    return folder


@pytest.mark.parametrize(
    "args",
    [
        "missing.npz --scales 3",
        "int64.npy --scales 3",
        "nan.npy --scales 3",
        "truncated.npz --scales 3",
        "text.npz --scales 3",
        "empty --scales 3",
        "good.npz --scales 3,4",
        "good.npz --scales three",
        "good.npz --scales 13",
        "good.npz --locality no-such-preset",
        "good.npz --scales 3 --labels labels.npy",
        "good.npz --scales 3 -o taken",
        "good.npz --scales 3 -o taken --overwrite",
        "good.npz --scales 3 -o .",
        "good.npz --scales 3 -o /",
        "good.npz --scales 3 --memory lots",
        "good.npz --scales 3 --memory 1M",
        "good.npz --scales 3 --limit 0",
        "good.npz --scales 3 --device tpu",
        "good.npz --scales 3 --threads 0",
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(args, broken, monkeypatch):
    monkeypatch.chdir(broken)
    before = sorted(broken.rglob("*"))
    refused("build", "-o", "out.zarr", *args.split())
    assert sorted(broken.rglob("*")) == before
    assert (broken / "taken" / "mine.txt").read_text() == "keep me"


@pytest.mark.parametrize("option", ["--limit", "--lists", "--pca-dims", "--crop", "--resize"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_counts_below_one_are_refused(option, value, source, tmp_path):
    said = refused("build", source, "-o", tmp_path / "s", "--scales", "3", option, value)
    assert f"'{option}': {value} " in said


@pytest.mark.parametrize("option", ["--scales", "--add-scales"])
def test_an_empty_list_of_scales_is_refused(option, source, tmp_path):
    images = [source] if option == "--scales" else []
    assert f"{option}: '' is not a list of integers" in refused(
        "build", *images, "-o", tmp_path / "s", option, ""
    )


@pytest.mark.parametrize("machine", ["IS", "LS"])
@pytest.mark.parametrize("option", ["--scales", "--pca-dims", "--lists", "--cluster"])
def test_machines_without_an_index_refuse_its_options(machine, option, source, tmp_path):
    said = refused("build", source, "-o", tmp_path / "s", "--machine", machine, option, "3")
    assert f"{option}: {machine} builds no index; leave it out" in said


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_output_is_a_path_on_this_machine(dry, source, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (
        ("build", source, "--scales", "3", "-o", "s3://bucket/s.zarr", *dry),
        ("build", "--add-scales", "9", "-o", "s3://bucket/s.zarr", *dry),
        ("append", "s3://bucket/s.zarr", source),
        ("sample", store, "-o", "s3://bucket/out"),
        ("study", store, "-o", "s3://bucket/out"),
    ):
        assert "is a URL; write to a local disk and copy it there" in refused(*command)
    for command in (("build", source, "--scales", "3", "-o", "", *dry), ("sample", store, "-o", "")):
        assert "--output: is empty" in refused(*command)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    args = ("build", DATA, "-o", tmp_path / "s.zarr", "--limit", 30, "--scales", "3,7", "--dry-run")
    plan = json.loads(run(*args, "--json").stdout)
    assert [scale["patches"] for scale in plan["scales"]] == [30 * 26 * 26, 30 * 22 * 22]
    assert "bbELS, 30 images" in run(*args, "--machine", "bbels").stdout  # in any case
    printed = run(*args).stdout
    assert printed.count(": fits") == 2
    assert "not tuned: exact scores take less time than estimators" in printed
    assert "follows from the content of 30 images" in printed
    assert "scaled from" not in printed
    assert "follows from" not in run(*args, "--pca-dims", 8).stdout
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_has_the_time_of_tuning(tmp_path):
    args = ("build", DATA, "-o", tmp_path / "s.zarr", "--limit", 30, "--scales", "3", "--dry-run")
    options = {"few": (), "tune": ("--tune",), "many": ("--assume-images", 60_000)}
    options["left out"] = (*options["many"], "--no-tune")
    seconds = {
        name: json.loads(run(*args, "--json", *more).stdout)["seconds"] for name, more in options.items()
    }
    tuning = {"images to tune by", "k = 3: operating curve"}
    assert {name for name, found in seconds.items() if tuning <= found.keys()} == {"tune", "many"}
    assert {name for name, found in seconds.items() if tuning & found.keys()} == {"tune", "many"}
    printed = run(*args, *options["many"]).stdout
    assert "assigning, merging, tuning, by short measurements" in printed
    assert "of it are for tuning; --no-tune leaves it out" in printed


def test_a_dry_run_takes_the_source_for_a_sample(tmp_path):
    args = ("build", DATA, "-o", tmp_path / "s.zarr", "--limit", 30, "--scales", "3", "--pca-dims", 8)
    assume = ("--dry-run", "--assume-images", 100_000)
    plan = json.loads(run(*args, *assume, "--json").stdout)
    assert plan["scales"][0]["patches"] == 100_000 * 26 * 26
    assert (plan["images"][0], plan["measured_images"]) == (100_000, 30)
    assert plan["total_seconds"] == pytest.approx(sum(plan["seconds"].values()))
    assert "scaled from the 30 images of SOURCE" in run(*args, *assume).stdout
    assert "--assume-images: 29 images are fewer" in refused(*args, "--dry-run", "--assume-images", 29)
    assert "--assume-images: is for a plan only; give --dry-run" in refused(*args, "--assume-images", 99)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_what_the_build_would_refuse(source, store, tmp_path, monkeypatch):
    build = ("build", source, "--scales", "3", "--dry-run")
    assert "exists" in refused(*build, "-o", store)
    run(*build, "-o", store, "--overwrite")
    zarr.open_group(tmp_path / "s.zarr.building", mode="w")
    write_checksummed(tmp_path / "s.zarr.building" / "settings.json", {"scales": [3]})
    assert "unfinished build" in refused(*build, "-o", tmp_path / "s.zarr")
    assert "--memory: " in refused(*build, "-o", tmp_path / "t.zarr", "--memory", "9M")
    (tmp_path / "file").write_text("")
    assert "file" in refused(*build, "-o", tmp_path / "file" / "s.zarr")
    assert "is not a name for a store" in refused(*build, "-o", "/")
    assert "tpu" in refused(*build, "-o", tmp_path / "t.zarr", "--device", "tpu")
    monkeypatch.chdir(tmp_path)
    assert "is not a patchindex store" in refused(*build, "-o", ".", "--overwrite")
    more = ("build", "--add-scales", "9", "-o", store, "--dry-run")
    assert "DOES NOT FIT" in run(*more, "--memory", "9M", code=2).stdout
    run(*more)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "s.zarr.building"]


def test_a_dry_run_resumes_the_same_build_only(source, store):
    build = ("build", source, "-o", store, "--dry-run", "--resume", "--locality", "3,3,5,7")
    assert "is complete: --resume has nothing to do" in run(*build).stderr
    assert "other settings (scales)" in refused(*build, "--scales", "9")


def test_clamped_options_are_reported(source, tmp_path):
    build = ("build", source, "-o", tmp_path / "s.zarr", "--scales", "3,5", "--no-tune")
    for more in (("--dry-run",), ()):
        limit, *clamped = run(
            *build, "--lists", 10**6, "--pca-dims", 16, "--limit", 1000, *more
        ).stderr.splitlines()
        assert limit == f"--limit: {source} has 40 images, fewer than 1,000"
        assert [line.partition(":")[0] for line in clamped] == ["--lists", "--pca-dims", "--lists"]
        assert " instead of 1,000,000 at k = 3: each list needs 32 patches" in clamped[0]
        assert "9 instead of 16 at k = 3: " in clamped[1]
    assert run(*build, "--lists", 20, "--pca-dims", 9, "--limit", 40, "--overwrite").stderr == ""


def test_adding_existing_scales_does_nothing(store):
    before = modified(store)
    for more in ((), ("--dry-run",)):
        done = run("build", "--add-scales", "3,5", "-o", store, *more)
        assert done.stdout == ""
        assert done.stderr == f"nothing to add: {store} has k = 3, 5 already\n"
        found = json.loads(run("build", "--add-scales", "3,5", "-o", store, *more, "--json").stdout)
        assert (found["scales"], found["added_scales"]) == ([3, 5, 7], [])
    assert modified(store) == before


def test_the_record_of_added_scales_adds_them_to_another_store(copied, store, tmp_path):
    args = ("--add-scales", "9", "--no-tune", "--threads", 1)
    found = run("build", "-o", copied, *args, "--json")
    assert json.loads(found.stdout)["added_scales"] == [9]
    (tmp_path / "run.json").write_text(found.stdout)
    another = shutil.copytree(store, tmp_path / "another.zarr")
    run("build", "--config", tmp_path / "run.json", "-o", another)
    assert pi.open_index(another).scales == (3, 5, 7, 9)
    for key, value in (("machine", "bbELS"), ("grayscale", True), ("limit", 3)):
        record = json.loads(found.stdout)
        record["command"]["options"][key] = value
        (tmp_path / "other.json").write_text(json.dumps(record))
        said = run("build", "--config", tmp_path / "other.json", "-o", another, code=2).stderr
        assert f"--{key}: is fixed in the store" in said


def test_a_store_without_a_schedule_says_how_to_sample(source, tmp_path):
    build = ("build", source, "-o", tmp_path / "s.zarr", "--no-tune")
    hint = "the store has no locality schedule: sample takes a preset unless you give --locality"
    assert hint in run(*build, "--scales", "3").stdout
    assert hint not in run(*build, "--locality", "3,3", "--overwrite").stdout
    assert hint not in run(*build, "--machine", "IS", "--overwrite").stdout
    assert (
        "does not use k = 9: give --locality"
        in run(
            "build", source, "-o", tmp_path / "t.zarr", "--locality", "3,3", "--scales", "3,9", "--no-tune"
        ).stdout
    )


def test_photos_of_any_size_are_cropped_and_resized(fashion, tmp_path):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for i, image in enumerate(fashion[0][:4]):
        Image.fromarray(image[: 20 + i]).save(tmp_path / "photos" / f"{i}.png")
    crop = ("--crop", "square", "--resize", 12)
    run("build", tmp_path / "photos", "-o", tmp_path / "s.zarr", *crop, "--locality", "3,3", "--no-tune")
    assert "4 of 12 x 12 x 1" in run("info", tmp_path / "s.zarr").stdout
    said = refused("build", tmp_path / "photos", "-o", tmp_path / "t.zarr", "--crop", "round")
    assert "'--crop': 'round' is neither a number of pixels nor 'square'" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("x.npz --add-scales 7", "is fixed in the store"),
        ("--add-scales 7 --machine ELS", "--machine: is fixed in the store"),
        ("--add-scales 7 --limit 3", "--limit: is fixed in the store"),
        ("--add-scales 7 --overwrite", "--overwrite: is fixed in the store"),
        ("--add-scales seven", "'seven'"),
        ("", "Missing argument 'SOURCE'"),
    ],
)
def test_options_that_do_not_go_with_add_scales_are_refused(store, arguments, words):
    assert words in refused("build", *arguments.split(), "-o", store)


def test_scales_are_not_added_to_a_missing_store(tmp_path):
    assert "no such store" in refused("build", "--add-scales", "7", "-o", tmp_path / "none.zarr")


def test_scales_are_not_added_to_a_store_without_an_index(source, tmp_path):
    run("build", source, "-o", tmp_path / "s.zarr", "--machine", "IS")
    assert "--add-scales: IS has no index" in refused("build", "--add-scales", "7", "-o", tmp_path / "s.zarr")


def test_without_scales_or_locality_a_schedule_follows_from_the_images(source, tmp_path):
    done = run("build", source, "-o", tmp_path / "s.zarr", "--no-tune", "--limit", 10)
    line = "no --locality: taking fashion-mnist-resnet-zeros for images of 28 x 28 (scales 3, 5, 7"
    assert line in done.stderr
    assert pi.open_index(tmp_path / "s.zarr").scales == pi.open_index(tmp_path / "s.zarr").locality.distinct
