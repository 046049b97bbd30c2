"""`patchindex study`: files, table, and what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from commands import refused, run
from PIL import Image


def test_study_writes_and_prints_its_results(store, tmp_path):
    out = tmp_path / "study"
    estimators = ("--estimator", "topk:candidates=16,probes=4", "--estimator", "auto")
    args = ("study", store, "-o", out, *estimators)
    found = json.loads(run(*args, "-n", 2, "--steps", 4, "--json").stdout)
    assert [row["estimator"] for row in found["summary"]] == ["exact", "topk:candidates=16,probes=4", "auto"]
    assert found["summary"][1]["rmse"] > found["summary"][2]["rmse"]
    assert sorted(file.name for file in out.iterdir()) == sorted(Path(file).name for file in found["files"])
    assert len((out / "study.csv").read_text().splitlines()) == 1 + 2 * 3 * (2 * 2 + 1)
    with Image.open(out / "images.png") as grid:  # a row per estimator, with its name to the left
        assert grid.width > 2 * 112 + 60
        assert grid.height == 3 * 112 + 4 * 4
    assert "already has study.csv, study.json, study.png, images.png" in refused(*args)
    printed = run(*args, "--steps", 3, "--overwrite")
    assert "rmse / stderr" in printed.stdout
    assert "topk:" in printed.stdout
    assert all(str(file) in printed.stdout for file in out.iterdir())
    assert "auto: computed all pixels exactly, so its errors are 0" in printed.stderr
    assert "topk:candidates=16,probes=4: computed" not in printed.stderr


def test_study_compares_images_of_one_label(store, tmp_path):
    run("study", store, "-o", tmp_path, "--estimator", "topk:candidates=8", "--steps", 2, "--label", 9)
    assert json.loads((tmp_path / "study.json").read_text())["settings"]["label"] == 9


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--estimator", "best"], "--estimator: unknown estimator 'best'"),
        (["--estimator", "topk:probes=many"], "--estimator: probes must be a whole number, got 'many'"),
        (["--estimator", "auto:threads=2"], "--estimator: auto has no option 'threads'"),
        (["--estimator", "auto:probes=1e3"], "probes"),
        (["--seed", -1], "'--seed': -1 is not in the range x>=0"),
        (["--repeats", 0], "'--repeats': 0 is not in the range x>=1"),
        (["--steps", 1], "'--steps': 1 is not in the range x>=2"),
        (["--label", 77], "--label: no image has label 77"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(store, tmp_path, args, message):
    assert message in refused("study", store, "-o", tmp_path / "out", *args)
    assert not (tmp_path / "out").exists()


def test_images_without_an_index_are_studied_exactly(source, tmp_path):
    options = ("--limit", 20, "--resize", 12, "--steps", 3, "--threads", 1)
    said = run("study", source, "-o", tmp_path / "out", *options)
    hint = (
        r"no index: exact scores of 20 images; an index .patchindex build. can pay from about [\d,]+ images"
    )
    assert re.search(f"{hint} of 12 x 12 on", said.stderr)
    assert "no --locality: taking fashion-mnist-resnet-zeros for images of 12 x 12" in said.stderr
    study = json.loads((tmp_path / "out" / "study.json").read_text())
    assert [row["estimator"] for row in study["summary"]] == ["exact"]
    assert study["summary"][0]["seconds"] > 0
    assert [row["trajectory"] for row in study["rows"]] == ["own"] * 2
    assert (tmp_path / "out" / "study.png").stat().st_size > 5_000
    again = run("study", "--config", tmp_path / "out" / "study.json", "-o", tmp_path / "again")
    assert "--limit 20 " in again.stderr
    same = [(tmp_path / name / "images.png").read_bytes() for name in ("out", "again")]
    assert same[0] == same[1]


def test_auto_without_an_index_samples_images_and_is_not_called_exact(real_images, tmp_path):
    images = tmp_path / "images.npz"
    np.savez(images, images=real_images(1100, 10)[0])
    auto = ("--estimator", "auto:tolerance=0.2,engine=offsets", "--locality", 3, "--steps", 3)
    said = run("study", images, "-o", tmp_path / "out", *auto, "--threads", 1)
    assert "no index: exact scores" not in said.stderr
    assert "computed all pixels exactly" not in said.stderr


def test_estimators_of_images_need_a_store(source, tmp_path):
    args = ("study", source, "-o", tmp_path / "out", "--locality", 3)
    assert refused(*args, "--estimator", "topk") == (
        "Error: --estimator: topk needs a patch index; use --estimator exact, or a store of ELS or bbELS, as "
        "patchindex build makes it\n"
    )
    assert not (tmp_path / "out").exists()


def test_the_exact_score_is_no_estimator_to_compare_twice(store, tmp_path):
    run(
        "study",
        store,
        "-o",
        tmp_path,
        "--steps",
        2,
        "--estimator",
        "exact",
        "--estimator",
        "topk:candidates=8",
    )
    study = json.loads((tmp_path / "study.json").read_text())
    assert [row["estimator"] for row in study["summary"]] == ["exact", "topk:candidates=8"]
