"""The pixels of windows, and their principal components, against windows cut by hand."""

from __future__ import annotations

import brute
import numpy as np
import pytest
import torch

from patchindex.geometry import Geometry, gather_patches, pad, query_windows
from patchindex.index.pca import GOOD, LOGIT_VARIANCE, MAX_DIMS, USUAL_DIMS, fit_pca

N, SIZE = 5, (7, 9)
CASES = [("ELS", 1), ("ELS", 3), ("ELS", 7)] + [
    (name, k) for name in ("LS", "ELS-wrapped", "bbELS") for k in (1, 3, 7, 11)
]
# float32 pixels in [-1, 1], scaled once by each side.
PIXEL = 2e-7


def geometry_of(name, k):
    return Geometry.of(k=k, size=SIZE, **brute.settings_of(name))


@pytest.fixture(params=[1, 3], ids=["gray", "colour"])
def images(request, real_images):
    return real_images(N, SIZE, channels=request.param)[0]


def patches_by_hand(images, name, k):
    """All training patches in the order of their ids: (N * patches_per_image, k, k, C)."""
    padding = {"ELS": "valid", "ELS-wrapped": "circular"}.get(name, "zeros")
    v = images / 127.5 - 1
    found = [
        [brute.window(image, y, x, k, padding) for y, x in brute.train_positions(name, k, *SIZE)]
        for image in v
    ]
    return np.array(found).reshape(-1, k, k, images.shape[-1])


@pytest.mark.parametrize(("name", "k"), CASES)
def test_gather_patches(images, name, k):
    geometry, pixels = geometry_of(name, k), torch.from_numpy(images)
    expected = patches_by_hand(images, name, k)
    ids = torch.arange(len(expected))  # all of them: borders, the first and the last image
    found = gather_patches(pixels, geometry, ids)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=PIXEL)
    shuffled = torch.randperm(len(expected), generator=torch.Generator().manual_seed(0))[:12].reshape(3, 4)
    some = gather_patches(pixels, geometry, shuffled)
    assert some.shape == (3, 4, k, k, images.shape[-1])
    assert torch.equal(some, found[shuffled])
    np.testing.assert_array_equal(pixels, images)  # nobody scaled the images themselves


@pytest.mark.parametrize("channels", [1, 3])
def test_gather_patches_of_part_of_a_larger_array(real_images, channels):
    """A view that starts inside its memory, as the images of one label do."""
    images = real_images(N + 4, SIZE, channels=channels)[0]
    part = torch.from_numpy(images)[3 : 3 + N]
    geometry = geometry_of("ELS", 3)
    expected = patches_by_hand(images[3 : 3 + N], "ELS", 3)
    found = gather_patches(part, geometry, torch.arange(len(expected)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=PIXEL)


@pytest.mark.parametrize(("name", "k"), CASES)
def test_query_windows(images, name, k):
    geometry = geometry_of(name, k)
    x = brute.noisy(images[:2], 0.5)
    found = query_windows(torch.from_numpy(x), geometry)
    padding = "circular" if name.startswith("ELS") else "zeros"
    expected = [
        brute.window(image.transpose(1, 2, 0), y, column, k, padding)
        for image in x
        for y in range(SIZE[0])
        for column in range(SIZE[1])
    ]
    np.testing.assert_array_equal(found, np.array(expected).reshape(-1, k, k, images.shape[-1]))


@pytest.mark.parametrize(("name", "k"), CASES)
def test_the_centre_of_a_patch_is_its_pixel(images, name, k):
    geometry = geometry_of(name, k)
    ids = torch.arange(N * geometry.patches_per_image)
    image, y, x = geometry.position(ids)
    middle = gather_patches(torch.from_numpy(images), geometry, ids)[:, k // 2, k // 2]
    np.testing.assert_allclose(middle, (images / 127.5 - 1)[image, y, x], rtol=0, atol=PIXEL)


@pytest.mark.parametrize(("name", "k"), CASES)
def test_projecting_images_is_projecting_their_patches(images, name, k):
    geometry, pixels = geometry_of(name, k), torch.from_numpy(images)
    patches = gather_patches(pixels, geometry, torch.arange(N * geometry.patches_per_image))
    pca = fit_pca(patches, 5)
    unit = torch.from_numpy((images / 127.5 - 1).transpose(0, 3, 1, 2)).float()
    found = pca.project_images(unit, geometry)
    # Sums of up to 11 * 11 * 3 products of numbers up to 2 in float32, in another order.
    torch.testing.assert_close(found, pca.project(patches), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("name", "k"), CASES)
def test_projecting_queries_is_projecting_their_windows(images, name, k):
    geometry, a = geometry_of(name, k), 0.6
    pca = fit_pca(
        gather_patches(torch.from_numpy(images), geometry, torch.arange(N * geometry.patches_per_image)),
        5,
    )
    x = torch.from_numpy(brute.noisy(images[:2], 0.5))
    found = pca.project_queries(x, geometry, a)
    windows = query_windows(x, geometry).double().flatten(1).numpy()
    expected = (windows - a * pca.mean.ravel()) @ pca.components.reshape(pca.dims, -1).T
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5)  # as above; noise reaches 4


def test_padding_larger_than_the_image():
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    wrapped = Geometry.of("ELS", 9, (2, 3), "wrapped")
    expected = np.pad(x.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), mode="wrap")
    np.testing.assert_array_equal(pad(x, wrapped, "wrapped"), expected)
    zeros = np.pad(x.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)))
    np.testing.assert_array_equal(pad(x, wrapped, "zeros"), zeros)
    assert pad(x, wrapped, "valid") is x


def test_pca_is_orthonormal_ordered_and_fitted(real_images):
    images = real_images(30, 12)[0]
    geometry = Geometry.of("ELS", 5, (12, 12))
    patches = gather_patches(torch.from_numpy(images), geometry, torch.arange(30 * 64))
    pca = fit_pca(patches, 25)
    flat = pca.components.reshape(25, -1).astype(np.float64)
    np.testing.assert_allclose(flat @ flat.T, np.eye(25), atol=1e-5)  # stored in float32
    variance = pca.project(patches).double().var(0, correction=0).numpy()
    assert (np.diff(variance) <= 1e-6 * variance[0]).all()
    assert pca.energy == pytest.approx(1)
    # All components keep all distances.
    p = patches.flatten(1)
    torch.testing.assert_close(
        torch.cdist(pca.project(patches[:50]), pca.project(patches[50:90])),
        torch.cdist(p[:50], p[50:90]),
        rtol=1e-4,
        atol=1e-4,
    )
    few = fit_pca(patches, 3)
    np.testing.assert_array_equal(few.components, pca.components[:3])
    assert few.energy == pytest.approx(variance[:3].sum() / variance.sum(), rel=1e-4)
    for noise in (0.002, 0.3):
        enough = fit_pca(patches, noise=noise)
        lost = [variance.sum() * (1 - fit_pca(patches, d).energy) for d in (enough.dims, enough.dims - 8)]
        of_logits = np.array(lost) * (1 - noise) / noise
        assert enough.dims % 8 == 0
        assert of_logits[0] <= GOOD + 1e-5 or enough.dims == len(variance) // 8 * 8 < USUAL_DIMS
        assert of_logits[1] > GOOD
    assert fit_pca(patches, noise=0.002).dims >= fit_pca(patches, noise=0.3).dims


@pytest.mark.parametrize("flat", [0.3, 0.02, 0.005])
def test_codes_get_more_dimensions_where_fewer_do_not_order_patches(flat):
    """Of patches whose components are all as large."""
    patches = torch.randn(4000, 11, 11, 2, generator=torch.Generator().manual_seed(0)) * flat
    noise = 0.05
    pca = fit_pca(patches, noise=noise)
    total = float(patches.flatten(1).var(0, correction=0).sum()) * (1 - noise) / noise
    left_out = [total * (1 - fit_pca(patches, d).energy) for d in (pca.dims, pca.dims - 8, USUAL_DIMS)]
    if pca.dims <= USUAL_DIMS:
        assert left_out[0] <= GOOD or left_out[2] <= LOGIT_VARIANCE
    else:
        assert pca.dims == MAX_DIMS or left_out[0] <= LOGIT_VARIANCE
        assert left_out[1] > LOGIT_VARIANCE


def test_pca_of_images_of_one_colour_is_finite():
    pca = fit_pca(torch.full((50, 3, 3, 1), 0.5))
    assert pca.energy == 1
    assert np.isfinite(pca.components).all()
    assert torch.isfinite(pca.project(torch.full((2, 3, 3, 1), 0.5))).all()
