"""The commands as a user runs them: what they write, print and end with."""

import json
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import zarr
from commands import DATA, fashion_images, run, small_store
from PIL import Image


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return small_store(tmp_path_factory)


@pytest.fixture(scope="module")
def fashion():
    return fashion_images()


def test_build_prints_nothing_but_one_line_off_a_terminal(store, tmp_path):
    result = run("build", DATA, "-o", tmp_path / "s.zarr", "--limit", 20, "--locality", "3,3")
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == 1
    assert "20 images" in result.stdout


def test_build_tunes_unless_told_not_to(store, tmp_path):
    args = ("build", DATA, "-o", tmp_path / "s.zarr", "--limit", 20, "--scales", "3")
    run(*args, "--no-tune")
    assert "no operating curve" in run("info", tmp_path / "s.zarr").stdout
    assert (
        "operating_curve" not in json.loads(run("info", tmp_path / "s.zarr", "--json").stdout)["indexes"]["3"]
    )
    run(*args, "--resume")  # does what is missing
    assert "operating curve: microseconds" in run("info", tmp_path / "s.zarr").stdout
    curve = json.loads(run("info", store, "--json").stdout)["indexes"]["3"]["operating_curve"]
    assert curve["images"] == 40


def test_info_tells_the_same_in_json_and_in_words(store):
    found = json.loads(run("info", store, "--json").stdout)
    assert found["scales"] == [3, 5, 7]
    assert found["indexes"]["5"]["patches"] == 40 * 24 * 24
    words = run("info", store).stdout
    assert found["fingerprint"] in words
    assert f"{40 * 24 * 24:,}" in words


def test_dry_run_forecasts_and_writes_nothing(tmp_path):
    path = tmp_path / "s.zarr"
    plan = json.loads(
        run("build", DATA, "-o", path, "--limit", 30, "--scales", "3,7", "--dry-run", "--json").stdout
    )
    assert [scale["patches"] for scale in plan["scales"]] == [30 * 26 * 26, 30 * 22 * 22]
    assert list(tmp_path.iterdir()) == []
    assert "fits" in run("build", DATA, "-o", path, "--limit", 30, "--scales", "3,7", "--dry-run").stdout


def test_sample_writes_a_grid_the_samples_and_how_they_were_made(store, tmp_path):
    run("sample", store, "-n", 3, "-o", tmp_path, "--seed", 4, "--steps", 6)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.mode == "L"
        assert min(grid.size) >= 2 * 112
    record = json.loads((tmp_path / "samples.json").read_text())
    assert record["store"]["fingerprint"] == json.loads(run("info", store, "--json").stdout)["fingerprint"]
    assert [step["k"] for step in record["steps"]] == [7, 7, 5, 3, 3]
    with np.load(tmp_path / "samples.npz") as samples:
        assert samples["images"].shape == samples["x_T"].shape == (3, 1, 28, 28)
        assert json.loads(str(samples["settings"]))["seed"] == 4
        assert (samples["labels"] == -1).all()
        images = samples["images"]
    # The noise that was written draws the same images again.
    run("sample", store, "-o", tmp_path / "again", "--x-t", tmp_path / "samples.npz", "--steps", 6)
    with np.load(tmp_path / "again" / "samples.npz") as again:
        # Exact sums of two runs differ in their last digits.
        np.testing.assert_allclose(again["images"], images, rtol=0, atol=1e-4)


def test_compiling_the_kernel_is_told_once(store, tmp_path, monkeypatch):
    took = iter([4.25, None])
    module = import_module("patchindex_cli.sample")
    monkeypatch.setattr(module, "load_kernel", lambda: next(took))
    for name, seconds in (("first", 4.25), ("second", None)):
        done = run("sample", store, "-n", 1, "-o", tmp_path / name, "--steps", 2, "--estimator", "exact")
        assert ("4.2 s once, to compile" in done.output) == (name == "first")
        record = json.loads((tmp_path / name / "samples.json").read_text())
        assert record["compile_seconds"] == seconds


def test_sample_of_one_label_uses_its_images_only(store, tmp_path, fashion):
    everything = ("--estimator", "topk", "--candidates", 10**6, "--probes", 10**4)
    run("sample", store, "-n", 1, "-o", tmp_path / "a", "--label", 3, "--steps", 5, *everything)
    images, labels = fashion
    alone = tmp_path / "alone.npz"
    np.savez(alone, images=images[:40][labels[:40] == 3])
    run("build", alone, "-o", tmp_path / "alone.zarr", "--locality", "3,3,5,7")
    run(
        "sample", tmp_path / "alone.zarr", "-n", 1, "-o", tmp_path / "b", "--estimator", "exact", "--steps", 5
    )
    with np.load(tmp_path / "a" / "samples.npz") as a, np.load(tmp_path / "b" / "samples.npz") as b:
        # All patches of the label are candidates and every list is looked into: nothing is truncated, and
        # what differs is the rounding of float32 sums over four steps.
        np.testing.assert_allclose(a["images"], b["images"], atol=1e-3)
        assert (a["labels"] == 3).all()


def broken_inputs(folder):
    """Each bad input of a build, by name: the source and further arguments."""
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
    scales = ("--scales", "3")
    return {
        "missing file": ("missing.npz", *scales),
        "wrong dtype": ("int64.npy", *scales),
        "NaN": ("nan.npy", *scales),
        "even k": ("good.npz", "--scales", "3,4"),
        "no number": ("good.npz", "--scales", "three"),
        "k larger than the image": ("good.npz", "--scales", "13"),
        "labels of the wrong length": ("good.npz", *scales, "--labels", folder / "labels.npy"),
        "an existing output": ("good.npz", *scales, "-o", folder / "taken"),
        "an existing output, overwrite": ("good.npz", *scales, "-o", folder / "taken", "--overwrite"),
        "an empty folder": ("empty", *scales),
        "a truncated npz": ("truncated.npz", *scales),
        "a text file named npz": ("text.npz", *scales),
        "an unknown preset": ("good.npz", "--locality", "no-such-preset"),
        "neither scales nor locality": ("good.npz",),
        "no amount of memory": ("good.npz", *scales, "--memory", "lots"),
        "too little memory": ("good.npz", *scales, "--memory", "1M"),
        "a limit of none": ("good.npz", *scales, "--limit", "0"),
        "no such device": ("good.npz", *scales, "--device", "tpu"),
        "no threads": ("good.npz", *scales, "--threads", "0"),
    }


NAMES = [
    "missing file",
    "wrong dtype",
    "NaN",
    "even k",
    "no number",
    "k larger than the image",
    "labels of the wrong length",
    "an existing output",
    "an existing output, overwrite",
    "an empty folder",
    "a truncated npz",
    "a text file named npz",
    "an unknown preset",
    "neither scales nor locality",
    "no amount of memory",
    "too little memory",
    "a limit of none",
    "no such device",
    "no threads",
]


@pytest.mark.parametrize(
    "args",
    [
        ["build", DATA],
        ["build"],
        ["build", DATA, "-o", "x", "--machine", "XLS"],
        ["build", DATA, "-o", "x", "--crop", "abc"],
        ["build", DATA, "-o", ".", "--scales", "3"],
        ["build", DATA, "-o", "/", "--scales", "3"],
        ["build", DATA, "-o", "x", "--scales", "3", "--seed", "-5"],
        ["no-such-command"],
        ["--no-such-option"],
    ],
)
def test_wrong_usage_is_one_line_too(args, tmp_path, monkeypatch):
    source = Path(DATA).resolve()
    monkeypatch.chdir(tmp_path)
    result = run(*(source if arg == DATA else arg for arg in args), code=2)
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_noise_that_cannot_be_read_is_one_line(store, tmp_path):
    np.savez(tmp_path / "good.npz", x_T=np.zeros((1, 1, 28, 28), np.float32))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:-60])
    np.save(tmp_path / "words.npy", np.array(["a"]))
    for name in ("cut.npz", "words.npy"):
        result = run("sample", store, "-o", tmp_path / "out", "--x-t", tmp_path / name, code=2)
        assert len(result.stderr.splitlines()) == 1
    (tmp_path / "file").write_text("")
    run("sample", store, "-n", 1, "-o", tmp_path / "file" / "out", code=2)


def test_every_bad_input_is_tried(tmp_path):
    assert list(broken_inputs(tmp_path)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_of_a_build_is_one_line_and_leaves_nothing(name, tmp_path):
    source, *rest = broken_inputs(tmp_path)[name]
    before = sorted(tmp_path.rglob("*"))
    result = run("build", tmp_path / source, "-o", tmp_path / "out.zarr", *rest, code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "taken" / "mine.txt").read_text() == "keep me"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--label", 77], "label 77"),
        (["--locality", "no-such-preset"], "no-such-preset"),
        (["--locality", "3,9"], "locality scale 9"),
        (["--x-t", "missing.npy"], "missing.npy"),
        (["-n", 0], "Invalid value for '-n': 0"),
        (["--steps", 1], "steps"),
        (["--seed", -1], "seed"),
        (["--estimator", "exact", "--candidates", 5], "candidates"),
        (["--probes", 0], "probes"),
    ],
)
def test_bad_input_of_a_sample_is_one_line_and_leaves_nothing(store, tmp_path, args, says):
    result = run("sample", store, "-o", tmp_path / "out", *args, code=2)
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_sample_refuses_what_is_no_store(tmp_path, store):
    for path in (tmp_path, tmp_path / "missing"):
        result = run("sample", path, "-o", tmp_path / "out", code=2)
        assert len(result.stderr.splitlines()) == 1
    zarr.open_group(tmp_path / "other.zarr", mode="w")
    assert "not a patchindex store" in run("info", tmp_path / "other.zarr", code=2).stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scales", "3"], "use another path, or --overwrite"),
        (["--scales", "3", "--resume"], r"give the same ones, or --overwrite"),
        (["--scales", "3", "--overwrite", "--memory", "9M"], "Error: --memory: .* a smaller --pca-dims or"),
        (
            ["--scales", "3", "--overwrite", "--lists", "0"],
            "'--lists': 0 is not in the range",
        ),
    ],
)
def test_messages_have_the_flags_of_the_command_line(store, options, message):
    result = run("build", store.with_suffix(".npz"), "-o", store, *options, code=2)
    assert re.search(message, result.stderr), result.stderr


def test_sample_overwrites_only_when_told(store, tmp_path):
    args = ("sample", store, "-n", 1, "-o", tmp_path, "--steps", 2)
    run(*args)
    before = (tmp_path / "samples.json").read_bytes()
    assert "--overwrite" in run(*args, code=2).stderr
    assert (tmp_path / "samples.json").read_bytes() == before
    run(*args, "--overwrite", "--seed", 1)
    assert json.loads((tmp_path / "samples.json").read_text())["settings"]["seed"] == 1


def test_a_damaged_store_is_a_failure_not_bad_input(store, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10, 12, 12), np.uint8)
    np.save(tmp_path / "i.npy", images)
    run("build", tmp_path / "i.npy", "-o", tmp_path / "s.zarr", "--locality", "3,3,3")
    faiss_file = tmp_path / "s.zarr/scales/k003/faiss/c/0"
    faiss_file.write_bytes(faiss_file.read_bytes()[:-100])
    result = run(
        "sample", tmp_path / "s.zarr", "-n", 1, "-o", tmp_path / "out", "--estimator", "topk", code=1
    )
    assert "faiss" in result.stderr
    assert not (tmp_path / "out").exists()


def test_resume_on_a_finished_store_does_nothing(tmp_path):
    args = ("build", DATA, "-o", tmp_path / "s.zarr", "--limit", 20, "--scales", "3")
    run(*args)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    run(*args, "--resume")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_study_writes_what_it_found(store, tmp_path):
    out = tmp_path / "study"
    arguments = (
        "study",
        store,
        "-o",
        out,
        "--estimator",
        "topk:candidates=16,probes=4",
        "--estimator",
        "auto",
    )
    found = json.loads(run(*arguments, "-n", 2, "--steps", 4, "--json").stdout)
    assert [row["estimator"] for row in found["summary"]] == ["exact", "topk:candidates=16,probes=4", "auto"]
    assert found["summary"][1]["rmse"] > found["summary"][2]["rmse"]
    assert sorted(file.name for file in out.iterdir()) == sorted(Path(file).name for file in found["files"])
    assert len((out / "study.csv").read_text().splitlines()) == 1 + 2 * 3 * (2 * 2 + 1)
    assert "holds study.csv, study.json, study.png, images.png already" in run(*arguments, code=2).stderr
    words = run(*arguments, "--steps", 3, "--overwrite").stdout
    assert "topk:" in words  # in a narrow terminal the name is folded
    assert "study.png" in words


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best", "--estimator: unknown estimator 'best'"),
        ("topk:probes", "--estimator: 'probes' is not option=number"),
        ("topk:probes=many", "--estimator: 'probes=many' is not option=number"),
        ("topk:blocks=3", "--estimator: topk has no option 'blocks'"),
        ("auto:threads=2", "--estimator: auto has no option 'threads'"),
        ("auto:probes=1e3", "probes: must be a whole number, got 1000.0"),
        ("auto:tolerance=0", "tolerance: must be a number above 0"),
    ],
)
def test_study_refuses_bad_estimators(store, tmp_path, text, message):
    result = run("study", store, "-o", tmp_path / "out", "--estimator", text, code=2)
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-n", 0), "'-n': 0 is not in the range x>=1"),
        (("--seed", -1), "'--seed': -1 is not in the range x>=0"),
        (("--repeats", 0), "'--repeats': 0 is not in the range x>=1"),
        (("--steps", 1), "'--steps': 1 is not in the range x>=2"),
        (("--label", 77), "--label: no image has label 77"),
    ],
)
def test_study_refuses_bad_numbers(store, tmp_path, arguments, message):
    result = run("study", store, "-o", tmp_path / "out", *arguments, code=2)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_study_of_a_label_says_so(store, tmp_path):
    run("study", store, "-o", tmp_path, "--estimator", "topk:candidates=8", "--steps", 2, "--label", 9)
    assert json.loads((tmp_path / "study.json").read_text())["settings"]["label"] == 9
