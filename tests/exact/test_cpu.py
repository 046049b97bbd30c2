"""The CPU kernel against brute force: every machine, on images whose sizes fit no block."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from dataclasses import replace

import brute
import numpy as np
import pytest
import torch

from patchindex import exact
from patchindex.errors import InputError
from patchindex.exact import cpu, frame
from patchindex.geometry import Geometry
from patchindex.images import ImageSource
from patchindex.images.by_label import TrainingImages
from patchindex.kernels.simd import BLOCK
from patchindex.runtime import threads

MACHINES = [name for name in brute.MACHINES if name != "IS"]
# Logits up to 1e3 at t >= 0.3, rounded by 6e-8 relative a few times on the way.
FLOAT32 = 2e-5


def geometry_of(name, k, size):
    return Geometry.of(k=k, size=size, **brute.settings_of(name))


def scan(images, x, t, geometry, **settings):
    beta = brute.beta_of(t)
    x = torch.from_numpy(x).float()
    return exact.scan(exact.ScoreRequest(TrainingImages(images), geometry, x, beta, **settings))


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
    images, x = brute.images_and_query(real_images, n, size, channels, 0.5)
    state = scan(images, x, 0.5, geometry_of(name, k, size))[0]
    truth = brute.posterior_mean(images, x[0], brute.beta_of(0.5), name, k)
    mean = state.mean().permute(2, 0, 1).numpy()
    assert np.abs(mean - truth.mean).max() < FLOAT32 * np.abs(truth.mean).max()
    np.testing.assert_allclose(state.log_weight(), truth.log_weight, rtol=1e-6, atol=1e-3)
    np.testing.assert_allclose(state.ess(), truth.ess, rtol=1e-3)
    np.testing.assert_array_equal(state.count, truth.count)


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize(("name", "k", "size", "n", "channels"), CASES)
def test_wanted_pixels_agree_with_the_full_scan(real_images, monkeypatch, name, k, size, n, channels, few):
    """Both kernels, whichever the rule would choose."""
    monkeypatch.setattr(cpu, "pixel_cost", lambda plan: 1e-9 if few else 1e15)
    images, x = brute.images_and_query(real_images, n, size, channels, 0.5, queries=2)
    geometry = geometry_of(name, k, size)
    mask = torch.from_numpy(np.random.default_rng(0).random((2, *size)) < 0.2)
    whole = scan(images, x, 0.5, geometry)[mask]
    asked = scan(images, x, 0.5, geometry, pixels=mask)
    torch.testing.assert_close(asked.mean(), whole.mean(), rtol=0, atol=FLOAT32)
    torch.testing.assert_close(asked.log_weight(), whole.log_weight(), rtol=1e-6, atol=1e-3)
    assert torch.equal(asked.count, whole.count)


def own_threads():
    """Those that a scan starts for itself."""
    return [t for t in threading.enumerate() if t.name.startswith(("patchindex-exact", "patchindex-read"))]


@pytest.mark.parametrize("name", MACHINES)
def test_threads_blocks_and_tasks_change_nothing(real_images, monkeypatch, name):
    images, x = brute.images_and_query(real_images, 100, (12, 12), 3, 0.4, queries=3)
    geometry = geometry_of(name, 5, (12, 12))
    means = []
    for number, tasks, memory in ((1, 32, 256 << 20), (2, 200, 1 << 16), (2, 1, 1 << 20)):
        monkeypatch.setattr(cpu, "LEAST_TASKS", tasks)
        with threads(number):
            means.append(scan(images, x, 0.4, geometry, memory=memory).mean())
    for mean in means[1:]:
        torch.testing.assert_close(mean, means[0], rtol=0, atol=2e-6)  # float32 sums in another order


@pytest.mark.parametrize("lanes", [16, BLOCK // 2, BLOCK])
@pytest.mark.parametrize("name", MACHINES)
def test_all_tile_layouts_agree(real_images, monkeypatch, name, lanes):
    """Running sums begin at other columns then, so that they are rounded elsewhere."""
    images, x = brute.images_and_query(real_images, 100, (12, 12), 3, 0.4)
    geometry = geometry_of(name, 5, (12, 12))
    usual = scan(images, x, 0.4, geometry).mean()
    monkeypatch.setattr(cpu, "lanes", lambda geometry, images: lanes)
    torch.testing.assert_close(scan(images, x, 0.4, geometry).mean(), usual, rtol=0, atol=1e-6)


def off_by_what_is_skipped(bits):
    """One image that matches, then 4096 whose logits are some powers of two below it, of the opposite value.

    Returns by how much the posterior mean differs from float64.
    """
    images = np.zeros((4224, 1, 1, 1), np.uint8)
    images[0] = 255
    geometry, beta = Geometry.of("LS", 1, (1, 1)), 2 / (2 + bits * math.log(2))  # (2 a)^2 / (2 beta) nats
    x = torch.full((1, 1, 1, 1), (1 - beta) ** 0.5)
    means = [
        exact.scan(exact.ScoreRequest(TrainingImages(images), geometry, x, beta, dtype=dtype)).mean()
        for dtype in (torch.float32, torch.float64)
    ]
    return abs(float(means[0] - means[1]))


def test_skipped_members_change_the_mean_by_less_than_a_millionth(monkeypatch):
    bits = np.arange(20, 44, 0.5)
    # One thread: what others skip goes by what they have seen themselves, which may not be the match.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert max(map(off_by_what_is_skipped, bits)) < 1e-6
    # And it would be seen if more were skipped.
    monkeypatch.setattr(frame, "NEGLIGIBLE", 1e-5)
    assert max(map(off_by_what_is_skipped, bits)) > 1e-6


def test_no_more_threads_than_allowed(real_images, monkeypatch):
    images, x = brute.images_and_query(real_images, 100, (12, 12), 3, 0.4)
    seen = set()
    work = cpu._work

    def watched(*args):
        seen.add(threading.get_ident())
        return work(*args)

    monkeypatch.setattr(cpu, "_work", watched)
    with threads(1):
        scan(images, x, 0.4, geometry_of("ELS", 3, (12, 12)))
    assert len(seen) == 1


def test_an_error_in_a_thread_ends_the_scan(real_images, monkeypatch):
    images, x = brute.images_and_query(real_images, 100, (12, 12), 3, 0.4)
    calls = []
    prepare = cpu.kernel.prepare

    def broken(*args):
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError("no room")
        prepare(*args)

    monkeypatch.setattr(cpu.kernel, "prepare", broken)
    with pytest.raises(MemoryError, match="no room"):
        scan(images, x, 0.4, geometry_of("ELS", 3, (12, 12)))


class SlowSource(ImageSource):
    """Images that take a while to read, or cannot be."""

    def __init__(self, images, seconds=0.0, broken=False):
        super().__init__("slow", images.shape)
        self.images, self.seconds, self.broken = images, seconds, broken

    def _read(self, index):
        if self.broken and index.start > 0:
            raise OSError("the disk is gone")
        time.sleep(self.seconds)
        return self.images[index].copy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["IS", "ELS"])
def test_an_error_while_reading_ends_the_scan(real_images, monkeypatch, name, dtype):
    images, x = brute.images_and_query(real_images, 600, (12, 12), 3, 0.4)
    monkeypatch.setattr("patchindex.images.by_label.BLOCK_BYTES", 32 * 12 * 12 * 3)
    with pytest.raises(OSError, match="the disk is gone"):
        scan(SlowSource(images, broken=True), x, 0.4, geometry_of(name, 3, (12, 12)), dtype=dtype)
    assert not own_threads()


class InterruptedSource(SlowSource):
    """Images whose reader presses Ctrl-C before the third block; counts the blocks that are read."""

    def __init__(self, images, seconds):
        super().__init__(images, seconds)
        self.blocks = 0

    def _read(self, index):
        self.blocks += 1
        if self.blocks == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return super()._read(index)


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_ctrl_c_ends_the_scan_long_before_its_last_block(real_images, monkeypatch, seconds):
    """While tasks run, and while the next block is being read."""
    images, x = brute.images_and_query(real_images, 2000, (28, 28), 3, 0.4, queries=8)
    monkeypatch.setattr("patchindex.images.by_label.BLOCK_BYTES", 32 * 28 * 28 * 3)
    exact.load_kernel()
    source, geometry = InterruptedSource(images, seconds), geometry_of("ELS", 3, (28, 28))
    # Ctrl-C is ignored by what a shell runs in the background, tests too.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            scan(source, x, 0.4, geometry)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert source.blocks < 20  # of 63
    assert not own_threads()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 12, 12), (1, 3, 10, 10), (3, 12, 12), (1, 3, 12, 14)])
def test_x_of_another_shape_is_refused(real_images, shape, dtype):
    images = real_images(20, (12, 12), channels=3)[0]
    with pytest.raises(InputError, match="must be of shape"):
        scan(images, np.zeros(shape), 0.4, geometry_of("ELS", 3, (12, 12)), dtype=dtype)


def test_a_geometry_of_another_size_is_refused(real_images):
    images, x = brute.images_and_query(real_images, 20, (12, 12), 3, 0.4)
    with pytest.raises(InputError, match="the training images are of"):
        scan(images, x, 0.4, geometry_of("ELS", 3, (10, 10)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_x_may_require_gradients(real_images, dtype):
    images, x = brute.images_and_query(real_images, 20, (12, 12), 1, 0.4)
    training, geometry = TrainingImages(images), geometry_of("ELS", 3, (12, 12))
    x = torch.from_numpy(x).float()
    request = exact.ScoreRequest(training, geometry, x, 0.36, dtype=dtype)
    wanted = exact.scan(replace(request, x=x.clone().requires_grad_())).mean()
    assert not wanted.requires_grad
    torch.testing.assert_close(wanted, exact.scan(request).mean())
