"""The CPU kernel against brute force: every machine, on images whose sizes fit no block."""

from __future__ import annotations

import threading

import brute
import numpy as np
import pytest
import torch

from patchindex import exact
from patchindex.exact import cpu
from patchindex.exact.plan import slide
from patchindex.exact.simd import BLOCK
from patchindex.patches import Geometry
from patchindex.training import TrainingImages

MACHINES = [name for name in brute.MACHINES if name != "IS"]
# Logits up to 1e3 at t >= 0.3, rounded by 6e-8 relative a few times on the way.
FLOAT32 = 2e-5


def geometry_of(name, k, size):
    windows = "wrapped" if name == "ELS-wrapped" else "valid"
    return Geometry.of(name.removesuffix("-wrapped"), k, size, windows)


def scan(images, x, t, geometry, **settings):
    beta = brute.beta_of(t)
    return exact.scan(
        TrainingImages(images), geometry, torch.from_numpy(x).float(), (1 - beta) ** 0.5, beta, **settings
    )


def images_and_query(real_images, n, size, channels, t, queries=1):
    images = real_images(n, size, channels=channels)[0]
    return images, brute.noisy(real_images(queries, size, channels=channels, skip=500)[0], t)


CASES = [
    (name, k, size, n, channels)
    for name in MACHINES
    for k, size, n, channels in (
        (1, (12, 12), 20, 3),
        (3, (12, 12), 33, 1),
        (5, (9, 14), 5, 1),
        (7, (14, 9), 40, 3),
        (9, (11, 10), 17, 3),
        (13, (7, 6), 9, 3),
        (31, (6, 6), 9, 1),
    )
    if name != "ELS" or k <= min(size)
]


@pytest.mark.parametrize(("name", "k", "size", "n", "channels"), CASES)
def test_the_kernel_agrees_with_brute_force(real_images, name, k, size, n, channels):
    images, x = images_and_query(real_images, n, size, channels, 0.5)
    state = scan(images, x, 0.5, geometry_of(name, k, size))[0]
    truth = brute.posterior_mean(images, x[0], brute.beta_of(0.5), name, k)
    mean = state.mean().permute(2, 0, 1).numpy()
    assert np.abs(mean - truth.mean).max() < FLOAT32 * np.abs(truth.mean).max()
    np.testing.assert_allclose(state.log_weight(), truth.log_weight, rtol=1e-6, atol=1e-3)
    np.testing.assert_allclose(state.ess(), truth.ess, rtol=1e-3)
    np.testing.assert_array_equal(state.count, truth.count)


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize(("name", "k", "size", "n", "channels"), CASES)
def test_pixels_asked_for_one_by_one_are_those_of_the_full_scan(
    real_images, monkeypatch, name, k, size, n, channels, few
):
    """Both kernels, whichever the rule would choose."""
    monkeypatch.setattr(cpu, "_pixel_cost", lambda plan: 1e-9 if few else 1e15)
    images, x = images_and_query(real_images, n, size, channels, 0.5, queries=2)
    geometry = geometry_of(name, k, size)
    mask = torch.from_numpy(np.random.default_rng(0).random((2, *size)) < 0.2)
    whole = scan(images, x, 0.5, geometry)[mask]
    asked = scan(images, x, 0.5, geometry, pixels=mask)
    torch.testing.assert_close(asked.mean(), whole.mean(), rtol=0, atol=FLOAT32)
    torch.testing.assert_close(asked.log_weight(), whole.log_weight(), rtol=1e-6, atol=1e-3)
    assert torch.equal(asked.count, whole.count)


@pytest.mark.parametrize("name", MACHINES)
def test_threads_blocks_and_tasks_change_nothing(real_images, monkeypatch, name):
    images, x = images_and_query(real_images, 100, (12, 12), 3, 0.4, queries=3)
    geometry = geometry_of(name, 5, (12, 12))
    before = torch.get_num_threads()
    means = []
    for threads, tasks, memory in ((1, 32, 256 << 20), (2, 200, 1 << 16), (2, 1, 1 << 20)):
        monkeypatch.setattr(cpu, "LEAST_TASKS", tasks)
        torch.set_num_threads(threads)
        try:
            means.append(scan(images, x, 0.4, geometry, memory=memory).mean())
        finally:
            torch.set_num_threads(before)
    for mean in means[1:]:
        torch.testing.assert_close(mean, means[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("lanes", [16, BLOCK // 2, BLOCK])
@pytest.mark.parametrize("name", MACHINES)
def test_tiles_of_another_layout_agree(real_images, monkeypatch, name, lanes):
    """Running sums begin at other columns then, so that they are rounded elsewhere."""
    images, x = images_and_query(real_images, 100, (12, 12), 3, 0.4)
    geometry = geometry_of(name, 5, (12, 12))
    usual = scan(images, x, 0.4, geometry).mean()
    monkeypatch.setattr(cpu, "_lanes", lambda geometry, images: lanes)
    torch.testing.assert_close(scan(images, x, 0.4, geometry).mean(), usual, rtol=0, atol=1e-6)


def test_what_is_skipped_changes_nothing(real_images, monkeypatch):
    """At low noise most blocks are skipped; with no threshold none is."""
    images, x = images_and_query(real_images, 40, (12, 12), 3, 0.2)
    geometry = geometry_of("ELS", 3, (12, 12))
    skipping = scan(images, x, 0.2, geometry)
    monkeypatch.setattr(cpu, "NEGLIGIBLE", 1e-300)
    torch.testing.assert_close(scan(images, x, 0.2, geometry).mean(), skipping.mean(), rtol=0, atol=1e-6)


def test_no_more_threads_than_allowed(real_images, monkeypatch):
    images, x = images_and_query(real_images, 100, (12, 12), 3, 0.4)
    seen = set()
    work = cpu._work

    def watched(*args):
        seen.add(threading.get_ident())
        return work(*args)

    monkeypatch.setattr(cpu, "_work", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        scan(images, x, 0.4, geometry_of("ELS", 3, (12, 12)))
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 1


def test_an_error_in_one_thread_ends_the_scan(real_images, monkeypatch):
    images, x = images_and_query(real_images, 40, (12, 12), 3, 0.4)

    def broken(*args):
        raise MemoryError("no room")

    monkeypatch.setattr(cpu.kernel, "prepare", broken)
    with pytest.raises(MemoryError, match="no room"):
        scan(images, x, 0.4, geometry_of("ELS", 3, (12, 12)))


def test_ctrl_c_ends_the_scan_between_tasks(real_images):
    images, x = images_and_query(real_images, 100, (12, 12), 3, 0.4)
    shares = []

    def interrupt(share):
        shares.append(share)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(images, x, 0.4, geometry_of("ELS", 3, (12, 12)), progress=interrupt)
    assert len(shares) == 1
    assert not [t for t in threading.enumerate() if t.name.startswith("patchindex")]


def test_a_slide_sees_each_window_once():
    held: list[int] = []
    seen = {}
    for add, sub, centre in slide([1, 2, 6], 2, lambda i: 0 <= i < 8):
        held += [] if add is None else [add]
        if sub is not None:
            held.remove(sub)
        if centre is not None:
            seen[centre] = list(held)
    assert seen == {1: [0, 1, 2, 3], 2: [0, 1, 2, 3, 4], 6: [4, 5, 6, 7]}
