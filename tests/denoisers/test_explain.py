"""`ScoreMachine.explain`: the patches behind a pixel, named by image and position in the source."""

from __future__ import annotations

from pathlib import Path

import brute
import numpy as np
import pytest
import torch
from watched import linux_only, run_watched

import patchindex as pi
from patchindex.errors import InputError
from patchindex.images.file_names import FileNames

DATA = Path(__file__).parents[2] / "data" / "fashion_mnist_6k.npz"
PIXELS = [(0, 0), (6, 7), (13, 4)]

EXPLAIN = """
import numpy as np, torch
import patchindex as pi
from patchindex.estimators import AutoPolicy

data, path = sys.argv[1:3]
images = np.load(data)["images"][:220, 2:26, 2:26]
store = pi.build_index(images[..., None], path, scales=(3,))
policy = AutoPolicy(cost_limit=np.inf)
m = pi.ScoreMachine(store, tolerance=0.1, probes=4, candidates=8, policy=policy)
x = torch.from_numpy(images[:1, None] / np.float32(127.5) - 1) + torch.randn(1, 1, 24, 24) / 2
m.explain(x, 0.3, [(0, 0)], k=3, top=4)  # compiles
found = []
took = rise(lambda: found.append(m.explain(x, 0.3, [(0, 0)], k=3, top=80_000)))
print(json.dumps([found[0].method, found[0].weight.shape, took]))
"""

EXPLAIN_BATCH = """
import numpy as np, torch
import patchindex as pi

data, path = sys.argv[1:3]
images = np.load(data)["images"][:24].reshape(8, 3, 28, 28).transpose(0, 2, 3, 1)
store = pi.build_index(images, path, scales=(15,))
m = pi.ScoreMachine(store, estimator="topk", probes=4, candidates=16, memory="16M")
x = torch.from_numpy(images[:1] / np.float32(127.5) - 1).permute(0, 3, 1, 2) + torch.randn(64, 3, 28, 28) / 2
m.explain(x[:4], 0.3, [(0, 0)], k=15, top=4)  # compiles
found = []
took = rise(lambda: found.append(m.explain(x, 0.3, [(14, 9)], k=15, top=4)))
print(json.dumps([found[0].method, found[0].weight.shape, took]))
"""


@pytest.mark.parametrize("label", [None, 4])
@pytest.mark.parametrize("name", brute.MACHINES)
def test_patches_are_named_by_image_and_position_in_the_source(labelled, held_out, name, label):
    images, labels = labelled
    m = pi.ScoreMachine(images, labels, **brute.settings_of(name))
    x = held_out(0.3)
    found = m.explain(x, 0.3, PIXELS, k=5, label=label, top=6)
    assert len(found) == 6
    chosen = np.flatnonzero(labels == label) if label is not None else np.arange(len(images))
    for one in found:
        truth = brute.weights(images[chosen], x[one.sample].numpy(), brute.beta_of(0.3), name, one.pixel, k=5)
        truth = {(int(chosen[i]), y, x_): weight for (i, y, x_), weight in truth.items()}
        named = zip(one.image.tolist(), one.y.tolist(), one.x.tolist(), strict=True)
        np.testing.assert_allclose([truth[patch] for patch in named], one.weight, rtol=0, atol=1e-4)
        assert one.weight.sum() + one.rest == pytest.approx(1, abs=1e-9)
        assert (one.label == labels[one.image]).all()
        assert one.method == "exact"
        assert (one.captured_mass, one.relative_error) == (1, 0)


def test_whole_images_have_no_scale_whatever_k_is(labelled, held_out):
    m = pi.ScoreMachine(*labelled, machine="IS")
    (one,) = m.explain(held_out(0.3)[:1], 0.3, PIXELS[:1], k=4)
    assert one.k is None
    assert m.scale_at(0.3, 4) is None


@pytest.mark.parametrize("name", brute.MACHINES)
def test_all_patches_together_give_the_posterior_mean(labelled, held_out, name):
    images, labels = labelled
    m = pi.ScoreMachine(images, labels, **brute.settings_of(name))
    x = held_out(0.5)
    e = m.posterior_mean(x, 0.5, k=3)
    v = images / 127.5 - 1
    for one in m.explain(x, 0.5, PIXELS, k=3, top=40 * 14 * 14):
        mean = one.weight @ v[one.image, one.y, one.x]
        truth = e.mean[one.sample, :, one.pixel[0], one.pixel[1]]
        np.testing.assert_allclose(mean, truth, rtol=0, atol=1e-4)
        assert one.rest == pytest.approx(0, abs=1e-9)
        assert one.ess == pytest.approx(float(e.ess[one.sample, one.pixel[0], one.pixel[1]]), rel=1e-3)


@pytest.mark.parametrize("label", [None, 4])
@pytest.mark.parametrize("t", [0.05, 0.5])
def test_the_near_field_names_the_heaviest_patches(store, held_out, t, label, monkeypatch):
    monkeypatch.setattr("patchindex.estimators.auto._scan_seconds", lambda *args: 1e9)  # never exact
    m = pi.ScoreMachine(store, tolerance=0.01, probes=150, candidates=512)
    x = held_out(t)
    near = m.explain(x, t, PIXELS, k=5, label=label, top=4)
    exact = m.exact().explain(x, t, PIXELS, k=5, label=label, top=4)
    assert (near.method, exact.method) == ("near field", "exact")
    for mine, truth in zip(near, exact, strict=True):
        assert mine.weight.sum() + mine.rest == pytest.approx(1, abs=1e-9)
        error = max(5 * mine.relative_error, 0.02)
        n = len(mine)  # patches below e^-20 of the heaviest are not kept
        np.testing.assert_allclose(mine.weight, truth.weight[:n], rtol=error, atol=1e-4)
        assert n == 4 or truth.weight[n] < 1e-8
        assert 0 < mine.captured_mass <= 1
        clear = len(truth) == 1 or truth.weight[0] > 1.01 * truth.weight[1]
        if clear:
            assert (mine.image[0], mine.y[0], mine.x[0]) == (truth.image[0], truth.y[0], truth.x[0])


@linux_only
def test_the_near_field_of_one_pixel_takes_the_memory_of_one_pixel(tmp_path):
    method, shape, took = run_watched(EXPLAIN, DATA, tmp_path / "s.zarr")
    assert (method, shape) == ("near field", [1, 80_000])
    assert took < 100 << 20  # 24 x 24 pixels would have 369 MB of weights alone


def test_a_pixel_may_be_named_twice(store, held_out, monkeypatch):
    monkeypatch.setattr("patchindex.estimators.auto._scan_seconds", lambda *args: 1e9)  # never exact
    m, pixels = pi.ScoreMachine(store, tolerance=0.1, probes=8, candidates=20), [(6, 7), (0, 0), (6, 7)]
    found = m.explain(held_out(0.3), 0.3, pixels, k=5, top=900)
    assert found.method == "near field"
    for i, one in enumerate(found):
        (alone,) = m.explain(held_out(0.3), 0.3, [one.pixel], k=5, top=4)[i // 3 : i // 3 + 1]
        assert one.image[:4].tolist() == alone.image.tolist()
        np.testing.assert_allclose(one.weight[:4], alone.weight, rtol=1e-5)
        assert one.weight.sum() + one.rest == pytest.approx(1, abs=1e-9)
    assert found.image.shape == (6, 900)


@pytest.mark.parametrize("label", [None, 4])
def test_topk_names_the_heaviest_patches(store, held_out, label):
    m = pi.ScoreMachine(store, estimator="topk", probes=150, candidates=256)
    x = held_out(0.2)
    found = m.explain(x, 0.2, PIXELS, k=5, label=label, top=4)
    exact = m.exact().explain(x, 0.2, PIXELS, k=5, label=label, top=4)
    assert found.method == "topk"
    for mine, truth in zip(found, exact, strict=True):
        assert mine.weight.sum() + mine.rest == pytest.approx(1, abs=1e-9)
        assert 0 < mine.captured_mass <= 1
        # The estimated sum changes all weights alike.
        heavy = truth.weight[: len(mine)] > 1e-3
        ratios = (mine.weight / truth.weight[: len(mine)])[heavy]
        np.testing.assert_allclose(ratios, ratios[0], rtol=2e-3)
        assert 0.5 < ratios[0] < 1.1
        assert np.isnan(mine.ess)


@linux_only
def test_a_search_for_one_pixel_of_many_images_takes_the_memory_of_few_images(tmp_path):
    method, shape, took = run_watched(EXPLAIN_BATCH, DATA, tmp_path / "s.zarr")
    assert (method, shape) == ("topk", [64, 4])
    assert took < 60 << 20  # all windows of 64 images would take 135 MB


@pytest.mark.parametrize("label", [None, 4])
def test_topk_explains_images_of_a_batch_as_single_images(store, held_out, label):
    m = pi.ScoreMachine(store, estimator="topk", probes=20, candidates=64)
    x = torch.cat([held_out(t) for t in (0.2, 0.3, 0.25)])
    all_ = m.explain(x, 0.25, PIXELS, k=5, label=label, top=4)
    for i in range(6):
        alone = m.explain(x[i : i + 1], 0.25, PIXELS, k=5, label=label, top=4)
        mine = slice(3 * i, 3 * i + 3)
        assert np.array_equal(all_.image[mine], alone.image)
        np.testing.assert_allclose(all_.weight[mine], alone.weight, rtol=1e-4)


def test_all_pixels_are_explained_by_default(labelled, held_out):
    m = pi.ScoreMachine(labelled[0], machine="LS", locality=3)
    found = m.explain(held_out(0.3), 0.3, top=1)
    assert len(found) == 2 * 14 * 14
    assert (found.sample == np.repeat([0, 1], 14 * 14)).all()
    assert (found.y[:, 0] == found.pixel[:, 0]).all()
    assert (found.x[:, 0] == found.pixel[:, 1]).all()
    assert (found.label == -1).all()


def test_one_pixel_may_be_given_alone(labelled, held_out):
    m = pi.ScoreMachine(labelled[0], machine="LS", locality=3)
    assert [one.pixel for one in m.explain(held_out(0.3)[:1], 0.3, (2, 5))] == [(2, 5)]


@pytest.mark.parametrize(("name", "label"), [("LS", None), ("IS", 4), ("bbELS", 4)])
def test_more_patches_than_there_are_leave_places_empty(labelled, held_out, name, label):
    images, labels = labelled
    m, x = pi.ScoreMachine(images, labels, machine=name, locality=3), held_out(0.5)
    many, most = 20_000, 40 * 12 * 12
    found, all_ = (m.explain(x, 0.5, PIXELS, label=label, top=top) for top in (many, most))
    assert found.weight.shape == (len(x) * len(PIXELS), many)
    assert (found.image[:, most:] == -1).all()
    assert (found.weight[:, most:] == 0).all()
    for field in ("image", "y", "x", "label", "weight"):
        assert np.array_equal(getattr(found, field)[:, :most], getattr(all_, field))
    assert np.array_equal(found.rest, all_.rest)


def test_more_patches_than_memory_holds_are_refused(labelled, held_out):
    m = pi.ScoreMachine(labelled[0], machine="LS", locality=3)
    with pytest.raises(InputError, match=r"top: 100000000000 patches for each of 2 pixels take 29,802.3 GiB"):
        m.explain(held_out(0.3)[:1], 0.3, [(0, 0), (6, 7)], top=10**11)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        ([(0, 14)], r"pixels: \(0, 14\) is outside the image; give pairs"),
        ([(-1, 0)], "is outside the image"),
        ([3], "3 is not a pixel"),
        (3, "3 is not a pixel"),
        (np.array(3), "3 is not a pixel"),
        ([(0.5, 1)], "is not a pixel"),
        ([], "is empty"),
    ],
)
def test_pixels_outside_the_image_are_refused(labelled, held_out, pixels, message):
    m = pi.ScoreMachine(labelled[0], machine="LS", locality=3)
    with pytest.raises(InputError, match=message):
        m.explain(held_out(0.3), 0.3, pixels)
    with pytest.raises(InputError, match="top"):
        m.explain(held_out(0.3), 0.3, [(0, 0)], top=0)
    with pytest.raises(InputError, match="there are 2 times for 1 images"):
        m.explain(held_out(0.3), torch.tensor([0.3, 0.4]))


def test_patches_of_image_files_have_the_names_of_the_files(labelled, held_out):
    source = pi.open_images(labelled[0], labels=labelled[1])
    source.file_names = FileNames.of(f"{i}\t.png" for i in range(40))
    one = pi.ScoreMachine(source, machine="LS", locality=3).explain(held_out(0.3), 0.3, (2, 5), top=4)[0]
    assert one.name == tuple(f"{i}\t.png" for i in one.image)
    assert f"of image {one.image[0]} ({one.image[0]}\\t.png) at (2, 5)" in repr(one)
    plain = pi.ScoreMachine(labelled[0], machine="LS", locality=3)
    assert plain.explain(held_out(0.3), 0.3, (2, 5), top=4)[0].name == ("",) * 4


def test_a_plot_shows_the_window_of_the_pixel_and_the_patches_in_their_images(labelled, held_out):
    pytest.importorskip("matplotlib")
    source = pi.open_images(labelled[0])
    source.file_names = FileNames.of(f"${i}$.png" for i in range(40))
    x = held_out(0.3)
    found = pi.ScoreMachine(source, machine="bbELS", locality=[3, 3, 5, 7]).explain(x, 0.3, (2, 5), top=4)
    one = found[1]
    assert (one.t, one.k) == (0.3, 3)
    assert torch.equal(one.noisy, x[1])
    noisy, *panels = one.plot(3).axes
    assert noisy.get_title() == "t = 0.3, k = 3"
    assert len(panels) == 3
    for i, panel in enumerate(panels):
        assert panel.get_title().startswith(f"image {one.image[i]}\n\\${one.image[i]}\\$.png\nweight ")
        shown = panel.get_images()[0].get_array() * 255
        np.testing.assert_allclose(shown, labelled[0][one.image[i]].squeeze(), atol=1e-3)
        (window,) = panel.patches
        assert window.get_xy() == (one.x[i] - 1.5, one.y[i] - 1.5)
        assert (window.get_width(), window.get_height()) == (3, 3)
    assert noisy.patches[0].get_xy() == (5 - 1.5, 2 - 1.5)
    assert len(one.plot(9).axes) == 5  # there are four patches
    with pytest.raises(InputError, match="most: must be at least 1"):
        one.plot(0)
    whole = pi.ScoreMachine(labelled[0], machine="IS").explain(x, 0.3, (2, 5), top=2)[0]
    assert whole.k is None
    assert whole.plot().axes[0].get_title() == "t = 0.3"
