"""Studies: exact scores agree with themselves, sampled estimates have honest errors, files hold the table."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.errors import InputError
from patchindex.estimators import AutoPolicy
from patchindex.sampling import draw_noise
from patchindex.study import compare
from patchindex.study.plots import plot_accuracy
from patchindex.study.table import COLUMNS

LOCALITY = [3, 3, 3, 5, 5]
# So few images would be computed exactly: sample all the same.
SAMPLED = AutoPolicy(cost_limit=np.inf, first_strata=2)


def sampling(index):
    return pi.ScoreMachine(index, estimator="auto", tolerance=0.05, probes=4, candidates=8, policy=SAMPLED)


@pytest.fixture(scope="module")
def index(real_images, tmp_path_factory):
    images, labels = real_images(80, 14)
    path = tmp_path_factory.mktemp("study") / "s.zarr"
    return pi.build_index(images, path, labels=labels % 2, locality=LOCALITY)


@pytest.fixture(scope="module")
def study(index):
    machines = {
        "sampled": sampling(index),
        "again": pi.ScoreMachine(index, estimator="exact"),
        "topk": pi.ScoreMachine(index, estimator="topk", candidates=32),
    }
    return compare(machines, 3, 5, repeats=4, batch_size=2)


def rows_of(study, estimator, trajectory):
    return [r for r in study.rows if (r["estimator"], r["trajectory"]) == (estimator, trajectory)]


def test_a_row_for_each_estimator_trajectory_image_and_step(study):
    assert all(tuple(row) == COLUMNS for row in study.rows)
    for name in ("sampled", "again", "topk", "exact"):
        trajectories = ("own",) if name == "exact" else ("exact", "own")
        for trajectory in trajectories:
            found = [(row["image"], row["step"]) for row in rows_of(study, name, trajectory)]
            assert sorted(found) == [(image, step) for image in range(3) for step in range(1, 5)]
    assert {row["k"] for row in study.rows} == {3, 5}
    assert {name: tuple(x.shape) for name, x in study.images.items()} == dict.fromkeys(
        ("exact", "sampled", "again", "topk"), (3, 1, 14, 14)
    )


def test_exact_scores_agree_with_themselves(study):
    for row in rows_of(study, "again", "exact"):
        assert row["stderr"] == 0
        assert row["rmse"] == row["bias"] == row["max_error"] == 0
        assert row["coverage"] == row["captured_mass"] == 1
        assert row["exact_pixels"] == 14 * 14
    assert all(row["rmse"] < 1e-4 and row["r2"] > 0.999999 for row in rows_of(study, "again", "own"))


def test_sampled_estimates_have_honest_errors(study):
    rows = rows_of(study, "sampled", "exact")
    rmse, stderr, bias = (np.sqrt(np.mean([r[c] ** 2 for r in rows])) for c in ("rmse", "stderr", "bias"))
    assert 0.7 < rmse / stderr < 1.4
    assert bias < 0.8 * rmse  # of four repeats: half, without any bias
    assert all(row["max_error"] >= row["rmse"] > 0 for row in rows)
    assert np.mean([row["coverage"] for row in rows]) > 0.75  # of few repeats
    assert all(row["stderr"] is None and row["coverage"] is None for row in rows_of(study, "topk", "exact"))


def test_measures_are_those_of_the_estimates(index):
    machine = sampling(index)
    x_T = draw_noise(5, 2, (1, 14, 14))
    found = compare({"p": machine}, steps=5, x_T=x_T, repeats=2, seed=7)
    row = next(r for r in rows_of(found, "p", "exact") if (r["image"], r["step"]) == (1, 4))
    exact = machine.exact().posterior_mean(x_T, 0.8).mean[1]
    means = [machine.posterior_mean(x_T, 0.8, seed=seed).mean[1] for seed in (7, 8)]
    errors = [(mean - exact).double() for mean in means]
    assert row["t"] == 0.8
    assert row["rmse"] == pytest.approx(float(torch.stack(errors).square().mean().sqrt()), rel=1e-4)
    assert row["bias"] == pytest.approx(float((sum(errors) / 2).square().mean().sqrt()), rel=1e-4)
    assert row["max_error"] == pytest.approx(float(torch.stack(errors).abs().max()), rel=1e-4)


def test_batches_change_only_the_time(index):
    machine = sampling(index)
    one, two = (compare({"p": machine}, 2, 4, batch_size=size) for size in (1, 2))

    def keyed(study):
        return {(r["estimator"], r["trajectory"], r["image"], r["step"]): r for r in study.rows}

    assert keyed(one).keys() == keyed(two).keys()
    for key, row in keyed(one).items():
        for column in ("rmse", "max_error", "stderr", "ess"):
            other = keyed(two)[key][column]
            assert row[column] == other or row[column] == pytest.approx(other, rel=0.02, abs=1e-5)


def test_files_hold_the_table(study, tmp_path):
    study.to_csv(tmp_path / "s.csv")
    study.to_json(tmp_path / "s.json")
    with (tmp_path / "s.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(study.rows)
    assert float(table[0]["rmse"]) == study.rows[0]["rmse"]
    assert next(row for row in table if row["estimator"] == "topk")["stderr"] == ""
    kept = json.loads((tmp_path / "s.json").read_text())
    assert kept["rows"] == json.loads(json.dumps(study.rows))
    assert kept["settings"]["machines"]["topk"]["options"] == {"candidates": 32}


def test_files_are_replaced_at_once_and_have_plain_numbers(study, tmp_path):
    study.to_csv(tmp_path / "s.csv")
    before = (tmp_path / "s.csv").read_bytes()
    with pytest.raises(ValueError, match="unknown"):
        replace(study, rows=[*study.rows, {"unknown": 1}]).to_csv(tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_bytes() == before
    replace(study, settings={**study.settings, "n": np.int64(3)}).to_json(tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())["settings"]["n"] == 3


def test_the_summary_has_the_worst_values(study):
    summary = {row["estimator"]: row for row in study.summary()}
    assert list(summary) == ["exact", "sampled", "again", "topk"]
    for name in ("sampled", "topk"):
        rows = rows_of(study, name, "exact")
        by_step = [[r["rmse"] for r in rows if r["step"] == i] for i in range(1, 5)]
        assert summary[name]["rmse"] == pytest.approx(max(np.sqrt(np.mean(np.square(v))) for v in by_step))
        last = [r for r in rows_of(study, name, "own") if r["step"] == 1]
        assert summary[name]["r2"] == min(r["r2"] for r in last)
        assert summary[name]["seconds"] > 0
    assert summary["topk"]["coverage"] is None
    assert summary["sampled"]["least_ratio"] <= summary["sampled"]["largest_ratio"]
    assert summary["exact"]["rmse"] is None


def test_a_figure_has_plain_titles(study, tmp_path):
    figure = study.plot()
    figure.savefig(tmp_path / "s.png")
    assert (tmp_path / "s.png").stat().st_size > 10_000
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "RMSE of posterior mean (solid) and of image so far (dotted)"


def test_a_pixel_that_was_computed_exactly_does_not_stretch_the_axis():
    common = {"seconds": 1.0, "stderr": 0.01, "captured_mass": 1.0}
    rows = [
        {"estimator": "auto", "trajectory": kind, "t": t, "rmse": rmse, **common}
        for kind in ("exact", "own")
        for t, rmse in ((0.1, 1e-12), (0.5, 0.0), (0.9, 0.01))
    ]
    low, high = plot_accuracy(rows, ["auto"]).axes[0].get_ylim()
    assert 1e-8 < low < 1e-3
    assert high > 0.01


def test_progress_grows_to_one(index):
    shares = []
    machines = [pi.ScoreMachine(index, estimator="topk")]
    compare(machines, 2, 3, progress=lambda _, done, total: shares.append(done / total))
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)


def test_a_label_restricts_the_study(index):
    machine = sampling(index)
    found = compare({"p": machine}, 1, 3, label=1)
    assert found.settings["label"] == 1
    assert not torch.equal(found.images["exact"], compare({"p": machine}, 1, 3).images["exact"])


def test_machines_that_differ_in_more_than_the_estimator_are_refused(index, real_images):
    topk = pi.ScoreMachine(index, estimator="topk")
    other = pi.ScoreMachine(real_images(20, 14)[0], locality=LOCALITY)
    with pytest.raises(InputError, match="machines: there are no machines"):
        compare([])
    with pytest.raises(InputError, match="two machines are called 'topk'"):
        compare([topk, topk])
    with pytest.raises(InputError, match=r"'exact' is the name of the reference.* has the estimator 'topk'"):
        compare({"exact": topk})
    with pytest.raises(InputError, match="'b' has other images or schedules than 'a'"):
        compare({"a": topk, "b": other})
    with pytest.raises(InputError, match="repeats: must be at least 1"):
        compare([topk], repeats=0)
    with pytest.raises(InputError, match=r"repeats: must be a whole number, got 1\.5"):
        compare([topk], repeats=1.5)


def test_the_exact_score_alone_has_times_and_images(index, tmp_path):
    exact = pi.ScoreMachine(index, estimator="exact")
    found = compare([exact], 2, 3)
    assert {(row["estimator"], row["trajectory"]) for row in found.rows} == {("exact", "own")}
    (row,) = found.summary()
    assert row["rmse"] is None
    assert row["seconds"] > 0
    assert found.settings["machines"]["exact"]["estimator"] == "exact"
    torch.testing.assert_close(found.images["exact"], pi.sample(exact, 2, steps=3).images, rtol=0, atol=1e-4)
    assert [axes.get_title() for axes in found.plot().axes] == ["seconds per step and image"]


def test_the_machine_called_exact_is_the_reference(index):
    machines = {
        "exact": pi.ScoreMachine(index, estimator="exact"),
        "topk": pi.ScoreMachine(index, estimator="topk"),
    }
    found, alone = compare(machines, 1, 3), compare({"topk": machines["topk"]}, 1, 3)
    assert list(found.images) == ["exact", "topk"]
    torch.testing.assert_close(found.images["exact"], alone.images["exact"], rtol=0, atol=1e-4)
