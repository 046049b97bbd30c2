"""Random images, sizes, machines, scales, labels and times: every way of computing agrees with brute force.

The cases are the same in every run. `pytest tests/test_properties.py --hypothesis-profile long` draws others.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import brute
import numpy as np
import torch
from hypothesis import given, settings, target
from hypothesis import strategies as st

import patchindex as pi
from patchindex.estimators import AutoPolicy

INDEXED = ("ELS", "ELS-wrapped", "bbELS")
EVERYTHING = {"estimator": "topk", "candidates": 10**6, "probes": 10**4}
# So few images are scanned faster than anything is retrieved: sample all the same.
SAMPLED = {"estimator": "auto", "policy": AutoPolicy(cost_limit=np.inf, first_strata=2), "candidates": 8}
TOLERANCE = 0.02


@dataclass(frozen=True)
class Case:
    """Training images with labels, and noisy images for one machine, scale, label and time."""

    images: np.ndarray
    labels: np.ndarray
    name: str
    k: int
    label: int | None
    t: float
    x: np.ndarray

    def truth(self) -> list[brute.Truth]:
        members = self.images if self.label is None else self.images[self.labels == self.label]
        beta = brute.beta_of(self.t)
        return [brute.posterior_mean(members, x, beta, self.name, self.k) for x in self.x]

    @property
    def settings(self) -> dict[str, object]:
        return {**brute.settings_of(self.name), "label": self.label}

    @property
    def rounding(self) -> float:
        """The error of a posterior mean whose logits are sums in float32, divided by 2 beta."""
        pixels = self.images[0].size if self.name == "IS" else self.k**2 * self.images.shape[-1]
        return 1e-5 + 1e-7 * pixels / brute.beta_of(self.t)


@st.composite
def cases(draw: st.DrawFn, machines: tuple[str, ...] = brute.MACHINES, least: int = 1) -> Case:
    name = draw(st.sampled_from(machines))
    # Sides of 4 or more: an array of shape (N, 3, W, 1) has two readings, and is refused without its axes.
    height, width = draw(st.integers(4, 9)), draw(st.integers(4, 9))
    channels, n = draw(st.sampled_from([1, 3])), draw(st.integers(least, 12))
    # Windows of ELS lie inside the image; windows of other machines may be larger than the image.
    widest = min(height, width) if name == "ELS" else max(height, width) + 2
    k = 2 * draw(st.integers(0, (widest - 1) // 2)) + 1
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([2, 5, 256]))  # few grey levels: equal patches
    images = rng.integers(0, levels, (n, height, width, channels)) * (255 // (levels - 1))
    labels = rng.integers(0, 3, n)
    label = draw(st.sampled_from([None, int(labels[0])]))
    t = draw(st.floats(0.03, 0.98))
    clean = rng.integers(0, 256, (draw(st.integers(1, 3)), height, width, channels)).astype(np.uint8)
    x = brute.noisy(clean, t, seed=int(rng.integers(1 << 30)))
    return Case(images.astype(np.uint8), labels, name, k, label, t, x)


def assert_near(estimate: pi.Estimate, truth: list[brute.Truth], tolerance: float) -> None:
    error = np.abs(estimate.mean.numpy() - np.stack([each.mean for each in truth])).max()
    target(math.log10(float(error) / tolerance + 1e-9))
    assert error <= tolerance
    assert estimate.patches_evaluated == sum(each.count.sum() for each in truth)


@given(cases(), st.sampled_from([torch.float32, torch.float64]), st.sampled_from(["64K", None]))
def test_exact_posterior_means_agree_with_brute_force(case, dtype, memory):
    m = pi.ScoreMachine(
        case.images, case.labels, estimator="exact", dtype=dtype, memory=memory, **case.settings
    )
    e = m.posterior_mean(torch.from_numpy(case.x), case.t, k=case.k)
    assert_near(e, case.truth(), case.rounding if dtype == torch.float32 else 1e-6)
    assert (e.stderr == 0).all()
    # A float32 logit of 1e5 is rounded by up to 1e-2, and its weight by the same share.
    rtol = 1e-2 if dtype == torch.float32 else 1e-5
    np.testing.assert_allclose(e.ess, [each.ess for each in case.truth()], rtol=rtol)


@given(cases(), st.sampled_from([np.float32, np.float64, np.uint8]))
def test_images_of_any_dtype_are_the_same_images(case, dtype):
    given = case.images if dtype == np.uint8 else (case.images / 255).astype(dtype)
    one, other = (
        pi.ScoreMachine(images, case.labels, estimator="exact", **case.settings).posterior_mean(
            torch.from_numpy(case.x), case.t, k=case.k
        )
        for images in (case.images, given)
    )
    assert torch.equal(one.mean, other.mean)


@settings(max_examples=max(1, settings().max_examples // 4))
@given(cases(INDEXED, least=3), st.integers(1, 8))
def test_an_index_finds_every_patch_and_estimates_within_the_tolerance(case, lists):
    x, truth = torch.from_numpy(case.x), case.truth()
    windows = brute.settings_of(case.name)
    with tempfile.TemporaryDirectory() as folder:
        store = pi.build_index(
            case.images, Path(folder) / "s.zarr", scales=[case.k], labels=case.labels, lists=lists, **windows
        )
        assert pi.verify(store.path).problems == ()
        found = pi.ScoreMachine(store, label=case.label, **EVERYTHING).posterior_mean(x, case.t, k=case.k)
        sampled = pi.ScoreMachine(store, label=case.label, tolerance=TOLERANCE, **SAMPLED).posterior_mean(
            x, case.t, k=case.k
        )
    means = np.stack([each.mean for each in truth])
    np.testing.assert_allclose(found.mean, means, rtol=0, atol=case.rounding)
    assert (sampled.stderr <= TOLERANCE).all()
    # The root mean square of the errors, not each error: an error may be three standard errors.
    assert math.sqrt(np.square(sampled.mean.numpy() - means).mean()) <= 2 * TOLERANCE
