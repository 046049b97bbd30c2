"""`patchindex sample`: files, estimators, labels, and what it refuses."""

import json
from importlib import import_module

import numpy as np
import pytest
import zarr
from commands import refused, run
from PIL import Image

import patchindex as pi


def test_sample_writes_a_grid_the_samples_and_a_record(store, tmp_path):
    run("sample", store, "-n", 3, "-o", tmp_path, "--seed", 4, "--steps", 6)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.mode == "L"
        assert min(grid.size) >= 2 * 112
        first = np.asarray(grid)[4:116:4, 4:116:4]
    record = json.loads((tmp_path / "samples.json").read_text())
    assert record["store"]["fingerprint"] == json.loads(run("info", store, "--json").stdout)["fingerprint"]
    assert [step["k"] for step in record["steps"]] == [7, 7, 5, 3, 3]
    with np.load(tmp_path / "samples.npz") as samples:
        assert samples["images"].shape == samples["x_T"].shape == (3, 1, 28, 28)
        assert json.loads(str(samples["settings"]))["seed"] == 4
        assert (samples["labels"] == -1).all()
        images = samples["images"]
    np.testing.assert_array_equal(first, ((images[0, 0] + 1) * 127.5).clip(0, 255).round())
    # The noise in the file draws the same images again.
    run("sample", store, "-o", tmp_path / "again", "--x-t", tmp_path / "samples.npz", "--steps", 6)
    with np.load(tmp_path / "again" / "samples.npz") as again:
        np.testing.assert_array_equal(again["images"], images)


def test_the_time_of_compilation_is_reported_apart(store, tmp_path, monkeypatch):
    took = iter([4.25, None])
    monkeypatch.setattr(import_module("patchindex.exact"), "load_kernel", lambda: next(took))
    for name, seconds in (("first", 4.25), ("second", None)):
        done = run("sample", store, "-n", 1, "-o", tmp_path / name, "--steps", 2, "--estimator", "exact")
        assert ("compiled the exact kernels for this machine in 4.2 s" in done.output) == (name == "first")
        record = json.loads((tmp_path / name / "samples.json").read_text())
        assert record["compile_seconds"] == seconds


def test_several_devices_draw_the_same_images(store, tmp_path):
    for name, device in (("one", "cpu"), ("two", "cpu,cpu")):
        run(
            "sample", store, "-n", 2, "-o", tmp_path / name, "--steps", 3, "--estimator", "exact",
            "--device", device,
        )  # fmt: skip
        record = json.loads((tmp_path / name / "samples.json").read_text())
        assert record["settings"]["device"] == device
    with np.load(tmp_path / "one" / "samples.npz") as one, np.load(tmp_path / "two" / "samples.npz") as two:
        np.testing.assert_allclose(two["images"], one["images"], rtol=0, atol=1e-4)
    said = run("build", store, "-o", tmp_path / "s.zarr", "--device", "cpu,cpu", code=2).stderr
    assert "Error: --device: 'cpu,cpu' names several devices; use one of them" in said


def test_a_label_draws_from_its_images_only(store, fashion, tmp_path):
    everything = ("--estimator", "topk:candidates=1000000,probes=10000")
    run("sample", store, "-n", 1, "-o", tmp_path / "a", "--label", 3, "--steps", 5, *everything)
    images, labels = fashion
    alone = tmp_path / "alone.npz"
    np.savez(alone, images=images[:40][labels[:40] == 3])
    run("build", alone, "-o", tmp_path / "alone.zarr", "--locality", "3,3,5,7", "--no-tune")
    exact = ("--estimator", "exact", "--steps", 5)
    run("sample", tmp_path / "alone.zarr", "-n", 1, "-o", tmp_path / "b", *exact)
    with np.load(tmp_path / "a" / "samples.npz") as a, np.load(tmp_path / "b" / "samples.npz") as b:
        # topk with all patches of the label is exact: only the rounding of float32 sums differs.
        np.testing.assert_allclose(a["images"], b["images"], atol=1e-3)
        assert (a["labels"] == 3).all()


def test_options_of_the_estimator_are_in_the_record(store, tmp_path):
    options = ("--estimator", "auto:probes=8,candidates=16", "--tolerance", 0.05)
    run("sample", store, "-n", 1, "-o", tmp_path, "--steps", 2, *options)
    settings = json.loads((tmp_path / "samples.json").read_text())["settings"]
    assert settings["estimator"] == "auto"
    assert settings["options"] == {"probes": 8, "candidates": 16, "tolerance": 0.05}


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("wiener", "wiener", {}),
        ("Wiener:circulant=true", "wiener", {"circulant": True}),
        ("nearest", "nearest", {}),
        ("ls", "LS", {"locality": [3, 3, 5, 7]}),
        ("ELS:train_windows=wrapped", "ELS", {"locality": [3, 3, 5, 7], "train_windows": "wrapped"}),
    ],
)
def test_a_store_serves_other_denoisers(store, fashion, tmp_path, text, name, options):
    run("sample", store, "-o", tmp_path, "-n", 2, "--label", 9, "--steps", 4, "--machine", text)
    record = json.loads((tmp_path / "samples.json").read_text(), parse_constant=pytest.fail)  # no NaN
    m = pi.denoiser(name, fashion[0][:40], fashion[1][:40], **options)
    assert {**record["settings"], **m.settings} == record["settings"]
    with np.load(tmp_path / "samples.npz") as samples:
        # The same sums of float32 numbers, in another order.
        np.testing.assert_allclose(samples["images"], pi.sample(m, 2, 4, label=9).images, rtol=0, atol=1e-4)


def test_a_machine_has_its_estimator_in_its_own_text(store, tmp_path):
    run(
        "sample",
        store,
        "-o",
        tmp_path,
        "-n",
        1,
        "--steps",
        2,
        "--machine",
        "ELS:estimator=auto,tolerance=0.5",
    )
    settings = json.loads((tmp_path / "samples.json").read_text())["settings"]
    assert settings["estimator"] == "auto"
    assert settings["options"] == {"tolerance": 0.5}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--label", 77], "--label: no image has label 77"),
        (["--locality", "no-such-preset"], "no-such-preset"),
        (["--locality", "3,9"], "locality scale 9"),
        (["--x-t", "missing.npy"], "missing.npy"),
        (["-n", 0], "Invalid value for '-n': 0"),
        (["--seed", -1], "'--seed': -1"),
        (["--estimator", "exact:engine=gpu"], "unknown engine 'gpu'; use one of cpu, fused, offsets"),
        (["--estimator", "exact:candidates=5"], "--estimator: exact has no option 'candidates'"),
        (["--estimator", "auto:probes=3,probes=4"], "--estimator: probes is given twice"),
        (
            ["--estimator", "topk:blocks=3"],
            "--estimator: topk has no option 'blocks'; its options are candidates",
        ),
        (["--estimator", "topk:probes"], "--estimator: 'probes' has no value; write topk:probes=VALUE"),
        (["--estimator", "topk:probes=0"], "probes"),
        (["--estimator", "auto:tolerance=0"], "tolerance"),
        (
            ["--estimator", "auto", "--tolerance", 1e200],
            "--tolerance: must be a number above 0 and at most 2",
        ),
        (["--estimator", "auto:tolerance=0.1", "--tolerance", 0.2], "--tolerance: is also in --estimator"),
        (["--estimator", "topk", "--tolerance", 0.2], "topk has no option 'tolerance'"),
        (["--machine", "vienna"], "--machine: unknown denoiser 'vienna'; use one of IS, LS, ELS, bbELS, "),
        (["--machine", "wiener:width=3"], "--machine: wiener has no option 'width'; its options are circ"),
        (["--machine", "nearest:k=3"], "--machine: nearest has no option 'k'; it has none"),
        (["--machine", "wiener:circulant=3"], "--machine: circulant must be true or false, got '3'"),
        (["--machine", "wiener", "--estimator", "exact"], "--estimator: wiener has no such option"),
        (["--machine", "wiener", "--tolerance", 0.1], "--tolerance: wiener has no such option"),
        (
            ["--machine", "wiener", "--memory", "9K"],
            "--memory: the covariance of 784 numbers per image needs",
        ),
        (["--machine", "wiener", "--memory", "9K"], "circulant=true in --machine"),
        (["--machine", "LS", "--estimator", "topk"], "--estimator: topk needs a patch index"),
        (["--machine", "ELS:estimator=auto", "--estimator", "exact"], "--estimator: is also in --machine"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(store, tmp_path, args, message):
    assert message in refused("sample", store, "-o", tmp_path / "out", *args)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("machine", ["IS", "wiener"])
def test_a_denoiser_without_locality_does_not_use_a_schedule_and_says_so(store, tmp_path, machine):
    args = ("sample", store, "-n", 1, "--steps", 3, "--machine", machine)
    given = run(*args, "-o", tmp_path / "given", "--locality", "3,3", "--nearest-scales").stderr
    assert f"{machine} has no locality: --locality is not used\n" in given
    assert f"{machine} has no locality: --nearest-scales is not used\n" in given
    plain = run(*args, "-o", tmp_path / "plain")
    assert "not used" not in plain.stderr
    images = [np.load(tmp_path / name / "samples.npz")["images"] for name in ("given", "plain")]
    np.testing.assert_array_equal(*images)


def test_unreadable_noise_is_refused(store, tmp_path):
    np.savez(tmp_path / "good.npz", x_T=np.zeros((1, 1, 28, 28), np.float32))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:-60])
    np.save(tmp_path / "words.npy", np.array(["a"]))
    for name in ("cut.npz", "words.npy"):
        refused("sample", store, "-o", tmp_path / "out", "--x-t", tmp_path / name)
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refused("sample", store, "-n", 1, "-o", tmp_path / "file" / "out")


def test_a_folder_that_is_not_a_store_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        refused("sample", path, "-o", tmp_path / "out")
    zarr.open_group(tmp_path / "other.zarr", mode="w")
    assert "not a patchindex store" in refused("info", tmp_path / "other.zarr")


def test_existing_files_are_replaced_with_overwrite_only(store, tmp_path):
    args = ("sample", store, "-n", 1, "-o", tmp_path, "--steps", 2)
    run(*args)
    before = (tmp_path / "samples.json").read_bytes()
    assert "already has grid.png, samples.npz, samples.json; use another folder, or --overwrite" in refused(
        *args
    )
    assert (tmp_path / "samples.json").read_bytes() == before
    run(*args, "--overwrite", "--seed", 1)
    assert json.loads((tmp_path / "samples.json").read_text())["settings"]["seed"] == 1


def test_a_damaged_store_is_a_failure_and_not_bad_input(copied, tmp_path):
    faiss_file = copied / "scales/k007/faiss/c/0"
    faiss_file.write_bytes(faiss_file.read_bytes()[:-100])
    said = refused("sample", copied, "-n", 1, "-o", tmp_path / "out", "--estimator", "topk", code=1)
    assert "faiss" in said
    assert not (tmp_path / "out").exists()


def test_images_without_a_store_are_drawn_from_exactly(source, tmp_path):
    done = run("sample", source, "-n", 2, "-o", tmp_path, "--machine", "LS", "--steps", 4)
    line = "no --locality: taking fashion-mnist-resnet-zeros for images of 28 x 28 (scales 3, 5, 7"
    assert line in done.stderr
    assert "100 % of pixels exactly" in done.stdout
    record = json.loads((tmp_path / "samples.json").read_text())
    assert record["settings"]["estimator"] == "exact"
    assert record["store"]["path"] == str(source)
    machine = pi.ScoreMachine(
        pi.open_images(source),
        machine="LS",
        locality=pi.LocalitySchedule.from_dict(record["settings"]["locality"]),
    )
    with np.load(tmp_path / "samples.npz") as samples:
        expected = pi.sample(machine, n=2, steps=4).images
        np.testing.assert_allclose(samples["images"], expected, rtol=0, atol=1e-3)
    assert "--estimator: topk needs a patch index" in refused(
        "sample", source, "-o", tmp_path / "no", "--estimator", "topk", "--locality", 3
    )


def test_scales_of_a_store_need_an_index(source, store, tmp_path):
    run("build", source, "-o", tmp_path / "LS.zarr", "--machine", "LS", "--locality", 3)
    for images in (source, tmp_path / "LS.zarr"):
        message = refused("sample", images, "-o", tmp_path / "out", "--nearest-scales")
        assert "--nearest-scales: needs a store with an index; leave it out" in message
    assert not (tmp_path / "out").exists()


def test_auto_draws_from_images_without_an_index(real_images, tmp_path):
    source = tmp_path / "images.npz"
    np.savez(source, images=real_images(1100, 10)[0])
    drawn = ("-n", 1, "--steps", 3, "--estimator", "auto:tolerance=0.2,engine=offsets", "--locality", 3)
    done = run("sample", source, "-o", tmp_path / "out", *drawn)
    assert "0 % of pixels exactly" in done.stdout
    assert "no index" not in done.stderr
    assert "probes: applies to an index on the CPU only" in refused(
        "sample", source, "-o", tmp_path / "no", "--estimator", "auto:probes=8", "--locality", 3
    )
