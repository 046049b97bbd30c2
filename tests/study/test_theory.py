"""Denoisers against a network: measures, labels, batches, resuming, and what is refused."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from stand_ins import OPTIONS, SIZE, Fragile

import patchindex as pi
from patchindex.errors import InputError
from patchindex.sampling import draw_noise
from patchindex.study import TheoryOptions, theory
from patchindex.study.theory_table import markdown, read_run, wide_rows

FILES = {"images.csv", "trajectory.csv", "table.md", "table.csv", "results.json"}
FIGURES = {"scatter.png", "curves.png", "images.png"}


class Labelled(pi.Denoiser):
    """A network with labels: the local score machine of the images of a label."""

    def __init__(self, machine, labels):
        super().__init__(machine.shape)
        self.machine, self.labels = machine, labels

    def check_label(self, label):
        if label is not None and label not in getattr(self, "labels", ()):
            raise InputError(f"the network has no label {label}", parameter="label")

    def _estimate(self, x, beta, call):
        assert call.label in self.labels
        return self.machine.posterior_mean(x, call.t, label=call.label)


@pytest.fixture(scope="module")
def found(denoisers, held_out):
    return theory(denoisers["LS"], denoisers, 5, options=OPTIONS, held_out=held_out)


def rows_of(rows, **wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_a_network_equal_to_a_denoiser_has_correlation_one_with_it(found):
    same = rows_of(found.images, denoiser="LS", network_steps=4)
    assert len(same) == 5
    assert all(row["pearson_r"] == pytest.approx(1) for row in same)
    assert all(row["r2"] == pytest.approx(1) for row in same)
    points = rows_of(found.points, denoiser="LS")
    assert all(row["pearson_r"] == pytest.approx(1) and row["mse"] < 1e-9 for row in points)
    other = rows_of(found.summary(), network_steps=4)
    assert [row["denoiser"] for row in other] == ["bbELS", "LS", "IS"]
    assert other[1]["pearson_r"] > other[0]["pearson_r"] > other[2]["pearson_r"]
    assert other[1]["share"] == 0.0  # bbELS is the first
    assert other[1]["difference_high"] < 0 < other[2]["difference_low"]


def test_images_are_the_ones_that_sample_draws_from_the_same_noise(found, denoisers):
    noise = draw_noise(OPTIONS.seed, 5, (1, SIZE, SIZE))
    for name, steps, denoiser in (("IS", 4, "IS"), ("network, 6 steps", 6, "LS")):
        drawn = pi.sample(denoisers[denoiser], x_T=noise, steps=steps).images
        assert torch.allclose(found.finals[name], drawn, atol=1e-4)


def test_posterior_means_are_compared_along_the_trajectory_of_the_network(found, denoisers):
    seen = []
    noise = draw_noise(OPTIONS.seed, 2, (1, SIZE, SIZE))
    pi.sample(denoisers["LS"], x_T=noise, steps=4, callback=lambda step: seen.append((step["t"], step["x"])))
    x = {0.75: noise, 0.5: seen[0][1], 0.25: seen[1][1]}
    for t, noisy in x.items():
        means = [denoisers[name].posterior_mean(noisy, t).mean.double() for name in ("IS", "LS")]
        for image in range(2):
            (row,) = rows_of(found.points, denoiser="IS", inputs="trajectory", image=image, t=t)
            one, two = (mean[image].flatten() for mean in means)
            assert row["pearson_r"] == pytest.approx(float(torch.corrcoef(torch.stack([one, two]))[0, 1]))
            assert row["mse"] == pytest.approx(float((one - two).square().mean()), rel=1e-4)
            assert row["error"] is None


def test_training_images_are_recalled_by_the_ideal_score_and_held_out_images_are_not(found):
    error = {}
    for kind in ("training", "held-out"):
        rows = rows_of(found.points, denoiser="IS", inputs=kind, t=0.25)
        assert len(rows) == 3
        assert all(row["network_error"] > 0 for row in rows)
        error[kind] = max(row["error"] for row in rows)
    assert 10 * error["training"] < error["held-out"]


def test_each_image_of_a_network_with_labels_has_a_label_in_turn(images, denoisers):
    network = Labelled(denoisers["LS"], [4, 9])
    found = theory(network, {"LS": denoisers["LS"], "IS": denoisers["IS"]}, 3, options=OPTIONS)
    assert [row["label"] for row in rows_of(found.images, denoiser="IS", network_steps=4)] == [4, 9, 4]
    assert all(row["pearson_r"] > 0.999 for row in rows_of(found.images, denoiser="LS", network_steps=4))
    noise = draw_noise(OPTIONS.seed, 3, (1, SIZE, SIZE))[1:2]
    drawn = pi.sample(denoisers["IS"], x_T=noise, steps=4, label=9).images
    assert torch.allclose(found.finals["IS"][1], drawn[0], atol=1e-4)
    one = theory(network, {"IS": denoisers["IS"]}, 1, options=TheoryOptions(**{**vars(OPTIONS), "labels": 9}))
    assert {row["label"] for row in one.images + one.points} == {9}


def test_batches_change_only_the_time(found, denoisers, held_out):
    options = TheoryOptions(**{**vars(OPTIONS), "batch_size": 5})
    other = theory(denoisers["LS"], denoisers, 5, options=options, held_out=held_out)
    for one, two in ((found.images, other.images), (found.points, other.points)):
        for mine, its in zip(one, two, strict=True):
            for key in mine.keys() - {"seconds"}:
                assert mine[key] == its[key] or mine[key] == pytest.approx(its[key], rel=1e-3, abs=1e-6)


def test_files_hold_the_results(found, tmp_path):
    found.write(tmp_path / "out", "fashion", {"parameters": 12345, "loss": 0.0316})
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | FIGURES
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert kept["settings"]["seed"] == 5
    assert kept["settings"]["denoisers"]["bbELS"]["machine"] == "bbELS"
    assert kept["seconds"]["bbELS"]["images"] > 0
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| network | parameters | loss | minutes | images | bbELS | LS | IS |" in text
    assert "| fashion | 12,345 | 0.0316 |  | 5 | 0." in text
    assert all((tmp_path / "out" / name).stat().st_size > 5_000 for name in FIGURES)
    with (tmp_path / "out" / "table.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["network_steps"], second["network_steps"]) == ("6", "4")
    assert float(second["LS"]) == pytest.approx(1)
    assert float(first["IS low"]) <= float(first["IS"]) <= float(first["IS high"])


def test_images_of_one_colour_of_the_network_have_no_r2(images):
    black = pi.networks.wrap(lambda x, t: torch.zeros_like(x), (1, SIZE, SIZE), predicts="x0")
    options = TheoryOptions(steps=2, network_steps=2, along=0, noised=0)
    found = theory(black, {"IS": pi.denoiser("IS", *images)}, 2, options=options)
    drawn = torch.zeros_like(found.finals["network, 2 steps"])
    assert torch.allclose(found.finals["network, 2 steps"], drawn, atol=1e-6)
    assert [row["r2"] for row in (*found.images, *found.summary())] == [None] * 3


def test_images_of_one_colour_up_to_rounding_have_r_0_and_no_r2(images):
    nearly = torch.randn(1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 1e-6
    grey = pi.networks.wrap(lambda x, t: (0.5 + nearly).expand_as(x), (1, SIZE, SIZE), predicts="x0")
    options = TheoryOptions(steps=2, network_steps=2, along=1, noised=0)
    found = theory(grey, {"IS": pi.denoiser("IS", *images)}, 2, options=options)
    assert {(row["pearson_r"], row["r2"]) for row in (*found.images, *found.points)} == {(0.0, None)}


@pytest.mark.parametrize(
    "change",
    [
        {"images": 5}, {"images": []}, {"images": [{}]}, {"images": [1]}, {"settings": []}, {"settings": {}},
        {"setting": {"seed": None}}, {"setting": {"seed": 0.5}}, {"setting": {"n": -1}},
        {"name": 5}, {"network": None}, {"network": {"loss": "x"}}, {"first": {"r2": "x"}},
        {"first": {"image": 1}}, {"first": {"denoiser": None}}, {"first": {"r2": 10**400}},
        {"points": 5}, {"points": [{}]}, {"point": {"t": "x"}}, {"point": {"pearson_r": True}},
        {"point": {"t": 10**400}}, {"point": {"denoiser": 2}},
    ],
)  # fmt: skip
def test_damaged_results_of_a_comparison_are_not_joined(found, tmp_path, change):
    found.write(tmp_path)
    path = tmp_path / "results.json"
    content = json.loads(path.read_text())
    content["images"][0] |= change.pop("first", {})
    content["points"][0] |= change.pop("point", {})
    content["settings"] |= change.pop("setting", {})
    path.write_text(json.dumps({**content, **change}))
    with pytest.raises(InputError, match=r"results.json: cannot be read \(.+\); compare again"):
        read_run(tmp_path)


def test_several_comparisons_join_into_one_table(found, denoisers, tmp_path):
    found.write(tmp_path / "one", "first")
    other = theory(denoisers["IS"], {"bbELS": denoisers["bbELS"]}, 2, options=OPTIONS)
    other.write(tmp_path / "two", "second")
    runs = [read_run(tmp_path / name) for name in ("one", "two")]
    lines = markdown(runs).splitlines()
    assert any(line.startswith("| first |  |  |  | 5 | 0.") for line in lines)
    assert any(line.startswith("| second |  |  |  | 2 | ") and line.endswith(" |  |  |") for line in lines)
    assert [row["IS"] is None for row in wide_rows(runs)] == [False, False, True, True]
    with pytest.raises(InputError, match=r"has no results\.json; give folders"):
        read_run(tmp_path)
    (tmp_path / "one" / "results.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read"):
        read_run(tmp_path / "one")


def test_figures_name_the_denoisers(found):
    rows = {name: found.finals[name][:4] for name in ("network, 6 steps", "bbELS", "LS", "IS")}
    plain = np.asarray(pi.sampling.image_grid(torch.cat([*rows.values()]), columns=4))
    grid = np.asarray(found.grid(columns=4))
    np.testing.assert_array_equal(grid[:, -plain.shape[1] :], plain)
    assert (grid[:, : -plain.shape[1]] < 128).any()  # the names
    assert [axes.get_xlabel() for axes in found.plot_scatter().axes] == ["r of LS", "r of IS"]
    titles = [axes.get_title() for axes in found.plot_curves().axes]
    assert titles[:3] == [
        "images on the network's trajectory",
        "training images with noise",
        "held-out images with noise",
    ]


def test_progress_of_each_stage_grows_to_one(denoisers):
    seen = {}
    theory(
        denoisers["LS"],
        {"IS": denoisers["IS"]},
        3,
        options=OPTIONS,
        progress=lambda stage, done, total: seen.setdefault(stage, []).append(done / total),
    )
    assert "IS (1 of 1): images" in seen
    for shares in seen.values():
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1)


def test_comparisons_that_are_not_possible_are_refused(denoisers, images, held_out, real_images):
    network = denoisers["LS"]

    def refused(match, every=denoisers, n=2, held_out=None, **changed):
        options = TheoryOptions(**{**vars(OPTIONS), **changed})
        with pytest.raises(InputError, match=match):
            theory(network, every, n, options=options, held_out=held_out)

    refused("denoisers: there are none", {})
    refused("'network' is the name of the network", {"network": network})
    refused("none is made of training images", {"black": Fragile((1, SIZE, SIZE), 9)})
    small = pi.denoiser("IS", images[0][:, :8, :8])
    refused(r"'IS' has images of shape \(1, 8, 8\), the network of \(1, 10, 10\)", {"IS": small})
    refused("'b' has another noise schedule", {"b": pi.denoiser("IS", images[0], noise=lambda t: t**2)})
    other = pi.denoiser("IS", images[0][1:])
    refused("'b' has other training images than 'a'", {"a": denoisers["IS"], "b": other})
    refused("n: must be at least 1", n=0)
    refused("labels: the network has no labels", labels="each")
    refused("labels: unknown labels 'every'", labels="every")
    refused("label: no image has label 7", labels=7)
    refused("held_out: has 0 of 3 images that are not training images", held_out=images[0])
    refused(r"held_out: images are of \(8, 8, 1\)", held_out=images[0][:, :8, :8])
    refused("held_out: the images have no labels", held_out=np.asarray(held_out), labels=4)


def test_given_noise_takes_the_place_of_the_seed(denoisers, tmp_path):
    network = denoisers["LS"]
    noise = draw_noise(9, 2, network.shape)
    found = theory(network, denoisers, x_T=noise, options=OPTIONS, folder=tmp_path)
    for name, denoiser in denoisers.items():
        expected = pi.sample(denoiser, x_T=noise, steps=OPTIONS.steps, seed=OPTIONS.seed).images
        torch.testing.assert_close(found.finals[name], expected, rtol=0, atol=2e-5)  # float32 sums
    assert found.settings["n"] == 2
    again = theory(
        denoisers["LS"], denoisers, x_T=noise.numpy(), options=OPTIONS, folder=tmp_path, resume=True
    )
    assert torch.equal(again.finals["LS"], found.finals["LS"])
    with pytest.raises(InputError, match="has results of other settings: x_T"):
        theory(network, denoisers, x_T=noise + 1e-3, options=OPTIONS, folder=tmp_path, resume=True)
    with pytest.raises(InputError, match="has results of other settings: x_T"):
        theory(network, denoisers, 2, options=OPTIONS, folder=tmp_path, resume=True)
    with pytest.raises(InputError, match="n: is 3, but x_T has 2 images"):
        theory(network, denoisers, 3, x_T=noise, options=OPTIONS)
