"""The steps of a sample: drawn again, or read from a trajectory."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

import patchindex as pi
from patchindex.errors import InputError, PatchIndexWarning
from patchindex.sampling import TrajectoryFile

ARRAYS = ("x", "mean", "stderr", "ess", "captured_mass")


@pytest.fixture(scope="module")
def drawn(machine):
    """Two samples in five steps, with their trajectory."""
    return pi.sample(machine, n=2, steps=6, seed=7, trajectory=True)


def test_a_sample_drawn_again_has_the_steps_of_its_run(machine, drawn):
    steps = pi.explain.redraw(machine, drawn.x_T[1:2], steps=6, seed=7, number=1, expected=drawn.images[1:2])
    np.testing.assert_array_equal(steps.t, drawn.trajectory.t)
    np.testing.assert_array_equal(steps.k, drawn.trajectory.k)
    for name in ARRAYS:
        truth = getattr(drawn.trajectory, name)[:, 1]
        np.testing.assert_allclose(getattr(steps, name), truth, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(steps.image, drawn.images[1], rtol=0, atol=1e-4)
    assert (steps.number, steps.seed, steps.label, len(steps)) == (1, 7, None, 5)


@pytest.mark.parametrize("settings", [{"sampler": "ddpm"}, {"sampler": "euler", "spacing": "log-snr"}])
def test_a_sample_of_another_sampler_is_drawn_again(machine, settings):
    drawn = pi.sample(machine, n=2, steps=8, seed=7, **settings)
    steps = pi.explain.redraw(machine, drawn.x_T[1:2], steps=8, seed=7, number=1, **settings)
    torch.testing.assert_close(steps.image, drawn.images[1], rtol=0, atol=1e-3)


def test_a_sample_that_comes_out_differently_warns(machine, drawn):
    with pytest.warns(PatchIndexWarning, match="the sample, drawn again, differs"):
        steps = pi.explain.redraw(machine, drawn.x_T[:1], steps=6, expected=-drawn.images[:1])
    assert torch.equal(steps.image, -drawn.images[0])


def test_steps_are_read_from_a_trajectory(drawn, tmp_path):
    path = tmp_path / "t.zarr"
    TrajectoryFile(path).write(drawn.trajectory, 0, 2)
    steps = pi.explain.read_steps(path, 1, drawn.images[1:2], seed=7, label=4)
    np.testing.assert_array_equal(steps.t, drawn.trajectory.t)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(steps, name), getattr(drawn.trajectory, name)[:, 1])
    assert (steps.number, steps.seed, steps.label) == (1, 7, 4)
    with pytest.raises(InputError, match="has an image of shape"):
        pi.explain.read_steps(path, 1, drawn.images[1:2, :, :5])
    with pytest.raises(InputError, match="has no image 2"):
        pi.explain.read_steps(path, 2, drawn.images[1:2])


def test_each_step_has_the_patches_of_its_own_noise(machine, explanation):
    steps = explanation.steps
    for i, found in enumerate(explanation.patches):
        truth = machine.explain(steps.x[i : i + 1], steps.t[i], [(3, 4)], top=5)[0]
        one = found[3 * 10 + 4]
        assert one.pixel == (3, 4)
        np.testing.assert_array_equal(one.image, truth.image)
        np.testing.assert_allclose(one.weight, truth.weight, rtol=1e-4)
        assert one.ess == pytest.approx(float(steps.ess[i, 3, 4]), rel=1e-3)


def test_a_missing_scipy_is_refused_before_any_work(machine, explanation, monkeypatch):
    done = []
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)  # as Python marks a module that is not there
    with pytest.raises(InputError, match=r"scipy is not installed; pip install 'patchindex\[studies\]'"):
        pi.explain.explain_sample(machine, explanation.steps, progress=lambda *step: done.append(step))
    assert done == []


def test_the_last_step_can_be_explained_alone(machine, explanation):
    found = pi.explain.explain_steps(machine, explanation.steps, 2, last_only=True)
    assert [each is None for each in found] == [True] * 4 + [False]
    np.testing.assert_array_equal(found[-1].image, explanation.patches[-1].image[:, :2])


def test_the_numbers_of_a_sample_agree_with_its_maps(explanation):
    numbers = explanation.as_dict()
    last = explanation.patches[-1]
    assert numbers["steps"][-1]["heaviest"] == pytest.approx(last.weight[:, 0].mean())
    assert numbers["steps"][-1]["source_images"] == numbers["mosaic"]["source_images"]
    assert numbers["steps"][0]["k"] == 7
    image, count = explanation.sources(1)[0]
    assert count == (explanation.mosaic.image == image).sum()
    v = explanation.machine.training.in_source_order().read(np.array([image]))[0]
    np.testing.assert_allclose(explanation.source(image).permute(1, 2, 0), v / 127.5 - 1, atol=1e-6)
    assert numbers["nearest"][0]["distance"] <= numbers["nearest"][1]["distance"]
    assert "5 steps" in repr(explanation)


def test_figures_have_a_panel_for_each_map(explanation):
    figures = pi.explain.figures(explanation)
    assert list(figures) == ["mosaic", "steps", "sources"]
    titles = [axes.get_title() for axes in figures["mosaic"].axes]
    assert any("segments" in title for title in titles)
    assert any("nearest patch" in title for title in titles)


def test_the_legend_of_the_mosaic_names_training_images_and_their_files(explanation, real_images, tmp_path):
    def legend(found):
        figure = pi.explain.figures(found)["mosaic"]
        (shown,) = figure.legends or [figure.axes[2].get_legend()]
        return [text.get_text() for text in shown.get_texts()]

    assert legend(explanation) == [f"{number} ({count})" for number, count in explanation.sources(10)]
    names = ["a.png", "folder-of-shirts-0001.png", "price$.png"]
    for name, image in zip(names, real_images(3, 12)[0], strict=True):
        Image.fromarray(image[..., 0]).save(tmp_path / name)
    m = pi.ScoreMachine(pi.open_images(tmp_path), machine="ELS", locality=[3, 3, 5])
    found = pi.explain.explain_sample(m, pi.explain.redraw(m, torch.randn(1, 1, 12, 12), steps=4))
    shown = dict(enumerate(["a.png", "...of-shirts-0001.png", r"price\$.png"]))
    assert legend(found) == [f"{number} {shown[number]} ({count})" for number, count in found.sources(10)]


def test_a_sample_of_the_near_field_says_that_weights_are_estimated(labelled, tmp_path, monkeypatch):
    monkeypatch.setattr("patchindex.estimators.auto._scan_seconds", lambda *args: 1e9)  # never exact
    images, labels = labelled
    store = pi.build_index(images, tmp_path / "s.zarr", labels=labels, locality=[3, 5, 5], lists=150)
    m = pi.ScoreMachine(store, tolerance=0.05, probes=64, candidates=256)
    noise = torch.randn(1, 1, 14, 14, generator=torch.Generator().manual_seed(2))
    found = pi.explain.explain_sample(m, pi.explain.redraw(m, noise, steps=4), top=3)
    assert [row["method"] for row in found.by_step()] == ["near field"] * 3
    assert all(row["entropy"] is None for row in found.by_step())
    assert all(0 < row["captured_mass"] <= 1 for row in found.by_step())
    assert found.mosaic.summary()["method"] == "near field"
    assert "near field" in pi.explain.page_of(found)
    assert list(pi.explain.figures(found)) == ["mosaic", "steps", "sources"]
    exact = pi.explain.explain_sample(m.exact(), found.steps, top=3, last_only=True)
    # The heaviest patches agree where one patch is much heavier than the next.
    clear = exact.patches[-1].weight[:, 0] > 2 * exact.patches[-1].weight[:, 1]
    same = exact.patches[-1].image[:, 0] == found.patches[-1].image[:, 0]
    assert same[clear].mean() > 0.95
