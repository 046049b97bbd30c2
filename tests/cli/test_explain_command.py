"""`patchindex explain`: files, numbers, and what it refuses."""

import json
import re
import shutil

import numpy as np
import pytest
from commands import DATA, refused, run
from PIL import Image

import patchindex as pi
from patchindex.errors import printable


@pytest.fixture(scope="module")
def samples(store, tmp_path_factory):
    """Two samples in four steps."""
    path = tmp_path_factory.mktemp("samples") / "two"
    run("sample", store, "-n", 2, "-o", path, "--steps", 4, "--seed", 3)
    return path


def explained(samples, out, *args):
    return json.loads(run("explain", samples, "-o", out, "--threads", 1, "--json", *args).stdout)


def test_explain_writes_pictures_and_their_numbers(samples, store, tmp_path):
    out = tmp_path / "out"
    found = explained(samples, out, "--image", 1, "--pixels", "14,9", "--pixels", "0,0", "--top", 5)
    assert sorted(str(file) for file in out.iterdir()) == sorted(found["files"])
    for name in ("mosaic", "steps", "sources"):
        with Image.open(out / f"{name}.png") as picture:
            assert min(picture.size) > 200
    numbers = json.loads((out / "explain.json").read_text())
    assert numbers == {name: value for name, value in found.items() if name != "files"}
    assert numbers["settings"]["sample"] == 1
    assert [step["method"] for step in numbers["steps"]] == [None, None, "exact"]
    assert numbers["mosaic"]["pixels"] == 28 * 28
    # The patches are those of the Python API at the last step of the same trajectory.
    one = numbers["pixels"][0]
    assert one["pixel"] == [14, 9]
    assert sum(p["weight"] for p in one["patches"]) + one["rest"] == pytest.approx(1)
    with np.load(samples / "samples.npz") as file:
        noise = file["x_T"][1:]
    steps = []
    m = pi.ScoreMachine(store, threads=1)
    pi.sample(m, x_T=noise, steps=4, seed=3, first=1, callback=lambda s: steps.append(s["x"]))
    truth = m.explain(steps[-2], 0.25, [(14, 9)], top=5)[0]
    np.testing.assert_allclose([p["weight"] for p in one["patches"]], truth.weight, atol=1e-3)
    assert one["patches"][0]["image"] == truth.image[0]
    assert "already has mosaic.png" in refused("explain", samples, "-o", out)


def test_explain_prints_the_mosaic_and_the_patches_of_pixels(samples, tmp_path):
    printed = run("explain", samples / "samples.npz", "-o", tmp_path, "--pixels", "14,9").stdout
    for words in ("source images", "exact search", "14,9", "ESS", "mosaic.png", "explain.json"):
        assert words in printed
    first, *others = [line.split() for line in printed.splitlines() if re.search(r" 0\.\d{4} ", line)]
    named = [float(first[1]), *(float(line[0]) for line in others)]
    assert len(named) == 4  # of the eight patches in explain.json
    assert sum(named) + float(first[-2]) == pytest.approx(1, abs=3e-4)


def test_a_saved_trajectory_is_read_instead_of_a_new_one(samples, tmp_path, store):
    folder = tmp_path / "samples"
    run("sample", store, "-n", 2, "-o", folder, "--steps", 4, "--seed", 3, "--save-trajectory")
    result = run("explain", folder, "-o", tmp_path / "read", "--image", 1, "--threads", 1)
    assert "drawn again" not in result.stderr
    assert "drawn again" in run("explain", samples, "-o", tmp_path / "drawn", "--image", 1).stderr
    read, drawn = (json.loads((tmp_path / n / "explain.json").read_text()) for n in ("read", "drawn"))
    assert read["steps"][-1]["heaviest"] == pytest.approx(drawn["steps"][-1]["heaviest"], abs=1e-3)
    shutil.rmtree(folder / "trajectory.zarr" / "ess")
    assert "has no array ess" in refused("explain", folder, "-o", tmp_path / "damaged")


def test_samples_of_known_pixels_need_their_trajectory(samples, tmp_path):
    folder = shutil.copytree(samples, tmp_path / "samples")
    record = json.loads((folder / "samples.json").read_text())
    record["settings"]["known_pixels"] = 40
    (folder / "samples.json").write_text(json.dumps(record))
    message = refused("explain", folder, "-o", tmp_path / "out")
    assert "cannot be drawn again; draw the samples with sample --save-trajectory" in message


def test_the_page_has_all_steps_and_no_folder_of_this_machine(samples, store, tmp_path):
    page = tmp_path / "page.html"
    found = explained(samples, tmp_path / "out", "--html", page, "--beside", samples / "samples.npz")
    assert str(page) in found["files"]
    assert [step["method"] for step in found["steps"]] == ["exact"] * 3
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert re.search(r" training images of [^/\s]+, without a network", text)
    assert str(store.parent) not in text
    assert "already has page.html" in refused("explain", samples, "-o", tmp_path / "b", "--html", page)


def test_a_run_with_a_page_is_repeated_without_its_page(samples, tmp_path):
    page = tmp_path / "page.html"
    first = explained(samples, tmp_path / "out", "--html", page)
    written = page.stat().st_mtime_ns
    run("explain", "--config", tmp_path / "out" / "explain.json", "-o", tmp_path / "again")
    again = json.loads((tmp_path / "again" / "explain.json").read_text())
    assert again == {name: value for name, value in first.items() if name != "files"}
    assert page.stat().st_mtime_ns == written


def test_another_store_is_refused(samples, store, source, tmp_path):
    other = tmp_path / "other.zarr"
    run("build", source, "-o", other, "--locality", "3,5", "--limit", 20, "--no-tune", "--threads", 1)
    message = refused("explain", samples, "-o", tmp_path / "out", "--store", other)
    assert "has other images than the samples were drawn from" in message
    moved = shutil.copytree(store, tmp_path / "moved.zarr")
    folder = shutil.copytree(samples, tmp_path / "samples")
    record = json.loads((folder / "samples.json").read_text())
    record["store"]["path"] = str(tmp_path / "gone.zarr")
    (folder / "samples.json").write_text(json.dumps(record))
    message = refused("explain", folder, "-o", tmp_path / "out")
    assert "the store of the samples is not there; give --store" in message
    run("explain", folder, "-o", tmp_path / "out", "--store", moved)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--image", 2], "--image: there is no sample 2; use 0 to 1"),
        (["--pixels", "28,0"], "--pixels: 28,0 is outside the image; use 0,0 to 27,27"),
        (["--pixels", "3"], "--pixels: '3' is not a pixel"),
        (["--mosaic-tolerance", "nan"], "--mosaic-tolerance: must be at least 0, got nan; use 0.05"),
    ],
)
def test_what_does_not_fit_is_refused(samples, tmp_path, args, message):
    assert message in refused("explain", samples, "-o", tmp_path / "out", *args)


def test_samples_of_a_denoiser_without_patches_are_refused(store, tmp_path):
    run("sample", store, "-n", 1, "-o", tmp_path, "--machine", "wiener", "--steps", 3)
    assert "drawn by Wiener, which has no patches" in refused("explain", tmp_path, "-o", tmp_path / "out")


def test_samples_of_another_machine_than_the_stores_are_explained(store, tmp_path):
    run("sample", store, "-n", 1, "-o", tmp_path, "--machine", "LS", "--steps", 3, "--locality", "3,5")
    found = explained(tmp_path, tmp_path / "out")
    assert found["mosaic"]["machine"] == "LS"
    assert found["mosaic"]["method"] == "exact"


def _with(setting, value):
    return lambda record: {**record, "settings": {**record["settings"], setting: value}}


def _without(setting):
    return lambda record: {
        **record,
        "settings": {name: value for name, value in record["settings"].items() if name != setting},
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: [], "is no record of samples"),
        (lambda record: {**record, "settings": {}}, "is no record of samples"),
        (_with("seed", "3"), "samples: seed"),
        (lambda record: {**record, "store": {}}, "samples.json names no store; give --store"),
        (lambda record: {**record, "store": {"path": 5}}, "samples.json names no store; give --store"),
        (lambda record: {**record, "store": {"path": "x" * 5000}}, "the store of the samples is not there"),
        (_with("locality", {"name": "x", "scales": 5}), "scales must be a list of scales"),
        (_without("locality"), "is no record of samples: locality"),
        (_with("noise", "brown"), "brown"),
    ],
)
def test_a_damaged_record_is_refused(samples, tmp_path, change, message):
    folder = shutil.copytree(samples, tmp_path / "samples")
    record = json.loads((folder / "samples.json").read_text())
    (folder / "samples.json").write_text(json.dumps(change(record)))
    assert message in refused("explain", folder, "-o", tmp_path / "out")


def test_damaged_samples_are_refused(samples, tmp_path):
    folder = shutil.copytree(samples, tmp_path / "samples")
    with np.load(folder / "samples.npz") as file:
        arrays = dict(file)
    np.savez(folder / "samples.npz", **{**arrays, "x_T": arrays["x_T"][:1]})
    assert "has noise x_T of another shape" in refused("explain", folder, "-o", tmp_path / "out")
    np.savez(folder / "samples.npz", **{**arrays, "images": arrays["images"][:, :, :9]})
    assert "has images of shape (1, 9, 28)" in refused("explain", folder, "-o", tmp_path / "out")
    for text in ("{", "[" * 100_000):
        (folder / "samples.json").write_text(text)
        assert "is no JSON" in refused("explain", folder, "-o", tmp_path / "out")
    (folder / "samples.json").unlink()
    assert "no such file" in refused("explain", folder, "-o", tmp_path / "out")


def test_training_images_from_files_are_shown_with_their_names(fashion, tmp_path):
    names = ["plain.png", "dollar$1$.png", "\x1b[2Jblank.png", "日本.png", "a" * 60 + ".png"]
    (tmp_path / "files").mkdir()
    for name, image in zip(names, fashion[0][:, 6:22, 6:22], strict=False):
        Image.fromarray(image).save(tmp_path / "files" / name)
    made, samples, out = (tmp_path / name for name in ("s.zarr", "samples", "out"))
    run("build", tmp_path / "files", "-o", made, "--locality", "3,3,5", "--no-tune", "--threads", 1)
    assert "file names  of all images" in run("info", made).stdout
    run("sample", made, "-n", 1, "-o", samples, "--steps", 3)
    page = tmp_path / "page.html"
    found = explained(samples, out, "--pixels", "8,8", "--html", page)
    ordered = sorted(names)
    for row in [*found["nearest"], *found["sources"], *found["pixels"][0]["patches"]]:
        assert row["name"] == ordered[row["image"]]
    assert r"\\x1b[2Jblank.png" in page.read_text(encoding="utf-8")
    printed = run("explain", samples, "-o", tmp_path / "again", "--pixels", "8,8").stdout
    assert any(f"{i} ({name})" in printed for i, name in enumerate(ordered))
    assert "\x1b" not in printed
    run("originality", samples / "samples.npz", made, "-o", tmp_path / "compared", "--times", "0.2")
    row = (tmp_path / "compared" / "originality.csv").read_text().splitlines()[:2]
    row = dict(zip(*(line.split(",") for line in row), strict=True))
    for column in ("nearest", "shifted"):
        assert row[f"{column}_name"] == printable(ordered[int(row[f"{column}_image"])])
    assert row["heaviest_name_t0.2"] == printable(ordered[int(row["heaviest_image_t0.2"])])


def test_patches_are_shown_with_the_names_of_their_labels_unless_they_weigh_nothing(fashion, tmp_path):
    for i, name in enumerate(("cups", "mugs")):
        (tmp_path / "files" / name).mkdir(parents=True)
        Image.fromarray(fashion[0][i, 6:22, 6:22]).save(tmp_path / "files" / name / "a.png")
    made, samples = tmp_path / "s.zarr", tmp_path / "samples"
    options = ("--locality", "15,15", "--labels", "folders", "--no-tune", "--threads", 1)
    run("build", tmp_path / "files", "-o", made, *options)
    run("sample", made, "-n", 1, "-o", samples, "--steps", 3)
    printed = run("explain", samples, "-o", tmp_path / "out", "--pixels", "8,8").stdout
    assert "0 (cups)" in printed or "1 (mugs)" in printed
    weights = re.findall(r" ([01]\.\d{4}) +\d \(\w+/a\.png\)", printed)
    assert 1 <= len(weights) < 4  # of eight patches
    assert min(map(float, weights)) > 0


def test_samples_of_images_without_a_store_are_explained(tmp_path):
    drawn, explained = tmp_path / "drawn", tmp_path / "explained"
    prepared = ("--limit", 12, "--resize", 12)
    run("sample", DATA, "-o", drawn, "-n", 1, "--steps", 3, "--machine", "LS", *prepared)
    message = refused("explain", drawn, "-o", explained)
    assert "other images than the samples were drawn from" in message
    assert "--resize" in message
    found = json.loads(run("explain", drawn, "-o", explained, *prepared, "--json").stdout)
    assert 1 <= found["mosaic"]["source_images"] <= 12


def test_samples_of_images_that_a_pattern_names_are_explained(fashion, tmp_path):
    for i, image in enumerate(fashion[0][:4, 8:20, 8:20]):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    run("sample", tmp_path / "*.png", "-o", tmp_path / "drawn", "-n", 1, "--steps", 3, "--locality", "3,5")
    found = explained(tmp_path / "drawn", tmp_path / "out")
    assert {row["name"] for row in found["nearest"]} <= {"0.png", "1.png", "2.png", "3.png"}
    for image in tmp_path.glob("*.png"):
        image.unlink()
    assert "*.png: no path matches this pattern" in refused(
        "explain", tmp_path / "drawn", "-o", tmp_path / "none"
    )
