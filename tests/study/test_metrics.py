"""Measures of agreement: against numpy, and at the ends of their ranges."""

import numpy as np
import torch

from patchindex.study import pearson_r, r2, rmse


def pairs():
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(3, 3, 8, 8, generator=generator)
    return reference + 0.3 * torch.randn(3, 3, 8, 8, generator=generator), reference


def test_pearson_r_is_numpys_correlation():
    images, reference = pairs()
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(images, reference, strict=True)]
    np.testing.assert_allclose(pearson_r(images, reference), expected, atol=1e-6)  # numpy takes float32 here


def test_pearson_r_ignores_scale_and_offset_and_r2_does_not():
    images, reference = pairs()
    np.testing.assert_allclose(pearson_r(2 * images + 1, reference), pearson_r(images, reference), atol=1e-6)
    assert (r2(2 * images + 1, reference) < r2(images, reference) - 0.5).all()


def test_r2_is_one_less_the_share_of_variance_left():
    images, reference = pairs()
    left = rmse(images, reference) ** 2 / reference.double().flatten(1).var(1, correction=0)
    np.testing.assert_allclose(r2(images, reference), 1 - left, atol=1e-12)
    assert r2(reference, reference).tolist() == [1, 1, 1]
    assert rmse(reference, reference).tolist() == [0, 0, 0]
