"""The contract of all registered denoisers: one table of tests over the registry."""

from __future__ import annotations

import json
from collections import Counter

import brute
import pytest
import torch

import patchindex as pi
from patchindex.denoisers import TrainingDenoiser, takes_locality
from patchindex.denoisers.registry import DENOISERS
from patchindex.denoisers.wiener import GaussianDenoiser
from patchindex.errors import InputError

NAMES = sorted(DENOISERS)
FIELDS = ("mean", "stderr", "ess", "captured_mass")
T = 0.5
TIMES = torch.tensor([0.6, 0.2, 0.6, 0.9], dtype=torch.float64)

# Sums of float32 logits in another order.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5, "equal_nan": True}


@pytest.fixture(scope="module")
def images(real_images):
    return real_images(40, (10, 9), channels=3, classes=(2, 5, 8))


@pytest.fixture(scope="module")
def x(real_images):
    return torch.from_numpy(brute.noisy(real_images(4, (10, 9), channels=3, skip=900)[0], T))


@pytest.fixture(scope="module")
def make(images):
    def of(name: str, **options) -> TrainingDenoiser:
        if takes_locality(name):
            options["locality"] = [3, 3, 5, 5]
        return pi.denoiser(name, *images, **options)

    return of


def assert_same(a, b):
    for name in FIELDS:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), **TOLERANCE)


def part(estimate, rows):
    """Return the fields of some images."""
    return pi.Estimate(*(getattr(estimate, name)[rows] for name in FIELDS), patches_evaluated=0)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_types_and_ranges(make, x, name):
    m = make(name)
    e = m.posterior_mean(x, T)
    assert m.shape == (3, 10, 9)
    assert e.mean.shape == x.shape
    assert (e.mean.abs() <= 1.05).all() or isinstance(m, GaussianDenoiser)  # a Gaussian has no bounds
    for field in FIELDS[1:]:
        assert getattr(e, field).shape == (4, 10, 9)
    for field in FIELDS:
        assert getattr(e, field).dtype == torch.float32
        assert getattr(e, field).is_contiguous()
        assert not getattr(e, field).isinf().any()
    assert {type(e.patches_evaluated), type(e.codes_scanned), type(e.exact_pixels)} == {int}
    assert torch.isfinite(e.mean).all()
    assert m.score(x, T).shape == x.shape
    assert m.score(x, T).dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_the_score_goes_with_the_posterior_mean(make, x, name):
    m = make(name)
    beta = brute.beta_of(T)
    expected = ((1 - beta) ** 0.5 * m.posterior_mean(x, T).mean.double() - x) / beta
    torch.testing.assert_close(m.score(x, T).double(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_mixed_times_are_separate_calls(make, x, name):
    m = make(name)
    together = m.posterior_mean(x, TIMES)
    total = 0
    for i, t in enumerate(TIMES.tolist()):
        alone = m.posterior_mean(x[i : i + 1], t, image_ids=[i])
        assert_same(part(together, slice(i, i + 1)), alone)
        total += alone.patches_evaluated
    assert together.patches_evaluated == total


@pytest.mark.parametrize("name", NAMES)
def test_an_image_with_its_number_has_one_result_in_any_batch(make, x, name):
    m = make(name)
    together = m.posterior_mean(x, T, seed=5, image_ids=[3, 8, 1, 6])
    for rows, numbers in (([2], [1]), ([3, 0], [6, 3])):
        assert_same(part(together, rows), m.posterior_mean(x[rows], T, seed=5, image_ids=numbers))
    assert_same(together, make(name).posterior_mean(x, T, seed=5, image_ids=[3, 8, 1, 6]))


@pytest.mark.parametrize("name", NAMES)
def test_a_label_means_its_images(make, images, x, name):
    pixels, labels = images
    options = {"locality": [3, 3, 5, 5]} if takes_locality(name) else {}
    expected = pi.denoiser(name, pixels[labels == 5], **options).posterior_mean(x, T)
    assert_same(make(name).posterior_mean(x, T, label=5), expected)
    assert_same(make(name, label=5).posterior_mean(x, T), expected)
    everything = make(name, label=5).posterior_mean(x, T, label=2)
    assert not torch.allclose(everything.mean, expected.mean, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments_are_refused(make, images, x, name):
    m = make(name)
    for label in (3, 1.5):
        with pytest.raises(InputError, match="label"):
            m.posterior_mean(x, T, label=label)
        with pytest.raises(InputError, match="label"):
            m.prepare(label)
        with pytest.raises(InputError, match="label"):
            make(name, label=label)
    with pytest.raises(InputError, match=r"x: must be a tensor of shape \(B, 3, 10, 9\)"):
        m.posterior_mean(x[:, :1], T)
    with pytest.raises(InputError, match="t: must lie in"):
        m.posterior_mean(x, 1.0)
    with pytest.raises(InputError, match="image_ids"):
        m.posterior_mean(x, T, image_ids=[1])


@pytest.mark.parametrize("name", NAMES)
def test_sampling_works_for_any_batch_size(make, name):
    m = make(name)
    drawn = pi.sample(m, 3, 5, seed=4, batch_size=2, label=8)
    again = pi.sample(make(name), 3, 5, seed=4, batch_size=3, label=8)
    assert torch.isfinite(drawn.images).all()
    # Four steps multiply the rounding of one step.
    torch.testing.assert_close(drawn.images, again.images, rtol=0, atol=2e-3)
    text = json.dumps({"steps": drawn.steps, "settings": drawn.settings}, allow_nan=False)
    assert json.loads(text)["settings"]["label"] == 8


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_plain_data(make, name):
    settings = make(name).settings
    assert json.loads(json.dumps(settings, allow_nan=False)) == settings
    assert {"denoiser", "noise", "device"} <= settings.keys()


@pytest.mark.parametrize("name", NAMES)
def test_the_memory_changes_no_result(make, x, name):
    expected = make(name).posterior_mean(x, TIMES)
    found = make(name, memory="3M").posterior_mean(x, TIMES)
    assert_same(found, expected)
    assert found.patches_evaluated == expected.patches_evaluated


@pytest.mark.parametrize("name", NAMES)
def test_threads_change_no_result(make, x, name):
    assert_same(make(name, threads=1).posterior_mean(x, T), make(name, threads=3).posterior_mean(x, T))


@pytest.mark.parametrize("name", NAMES)
def test_progress_grows_to_the_end(make, x, name):
    seen = []
    make(name).posterior_mean(
        x, TIMES, progress=lambda stage, done, total: seen.append((stage, done / total))
    )
    assert seen
    assert Counter(stage for stage, _ in seen).keys() == {"posterior mean"}
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)


@pytest.mark.parametrize("name", NAMES)
def test_a_store_gives_the_result_of_its_images(make, images, x, name, tmp_path):
    store = pi.build_index(
        images[0], tmp_path / "s.zarr", labels=images[1], machine="IS", locality=[3, 3, 5, 5]
    )
    for label in (None, 2):
        found = pi.denoiser(name, str(store.path)).posterior_mean(x, T, label=label)
        assert_same(found, make(name).posterior_mean(x, T, label=label))
