"""`patchindex study`: files, table, and what it refuses."""

import json
from pathlib import Path

import pytest
from commands import refused, run


def test_study_writes_and_prints_its_results(store, tmp_path):
    out = tmp_path / "study"
    estimators = ("--estimator", "topk:candidates=16,probes=4", "--estimator", "auto")
    args = ("study", store, "-o", out, *estimators)
    found = json.loads(run(*args, "-n", 2, "--steps", 4, "--json").stdout)
    assert [row["estimator"] for row in found["summary"]] == ["exact", "topk:candidates=16,probes=4", "auto"]
    assert found["summary"][1]["rmse"] > found["summary"][2]["rmse"]
    assert sorted(file.name for file in out.iterdir()) == sorted(Path(file).name for file in found["files"])
    assert len((out / "study.csv").read_text().splitlines()) == 1 + 2 * 3 * (2 * 2 + 1)
    assert "already has study.csv, study.json, study.png, images.png" in refused(*args)
    printed = run(*args, "--steps", 3, "--overwrite").stdout
    assert "rmse / stderr" in printed
    assert "topk:" in printed
    assert "study.png" in printed


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


def test_images_without_an_index_are_refused_with_what_to_do(source, tmp_path):
    message = refused("study", source, "-o", tmp_path / "out")
    assert (
        f"{source}: holds 40 images and no index, and study compares estimators, which need one; " in message
    )
    assert "from about 1,800 images of 28 x 28 on" in message
