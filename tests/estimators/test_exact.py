"""`exact` from an index and from the images."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import patchindex as pi


@pytest.mark.parametrize("label", [None, 4])
def test_an_index_and_its_images_give_the_same(store, labelled, held_out, label):
    images, labels = labelled
    settings = {"machine": store.machine, "train_windows": store.train_windows}
    x = held_out(0.5)
    raw = pi.ScoreMachine(images, labels, estimator="exact", dtype=torch.float64, **settings)
    indexed = pi.ScoreMachine(store, estimator="exact", dtype=torch.float64)
    a, b = (m.posterior_mean(x, 0.5, k=5, label=label) for m in (raw, indexed))
    torch.testing.assert_close(a.mean, b.mean, rtol=0, atol=1e-6)  # float64, rounded to float32
    assert a.patches_evaluated == b.patches_evaluated


def test_a_batch_of_more_than_256_images_is_scanned_in_parts(labelled):
    """The parts join to the whole batch, and the progress goes from 0 to 1 and never back."""
    images = labelled[0][:4, :7, :7]
    x, reported = torch.randn(520, images.shape[3], 7, 7), []
    m = pi.ScoreMachine(images, estimator="exact", memory="3M")  # for less than 256 images at once

    def progress(stage, done, total):
        reported.append(done / total)

    whole = m.posterior_mean(x, 0.5, k=3, progress=progress)
    single = m.posterior_mean(x[290:291], 0.5, k=3)
    torch.testing.assert_close(whole.mean[290:291], single.mean, rtol=0, atol=1e-6)
    assert (whole.captured_mass == 1).all()
    assert (whole.stderr == 0).all()
    assert whole.exact_pixels == 520 * 49
    assert reported == sorted(reported)
    assert {256 / 520, 512 / 520, 1.0} < set(reported)
    assert max(after - before for before, after in pairwise([0.0, *reported])) < 0.25


def test_exact_accepts_scales_that_the_index_lacks(store, labelled, held_out):
    windows = {"machine": store.machine, "train_windows": store.train_windows}
    indexed, raw = (
        pi.ScoreMachine(images, estimator="exact", locality=[3, 7, 9], **more).posterior_mean(
            held_out(0.5), 0.5
        )
        for images, more in ((store, {}), (labelled[0], windows))
    )
    torch.testing.assert_close(indexed.mean, raw.mean, rtol=0, atol=2e-5)
