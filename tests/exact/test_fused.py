"""The fused kernel against brute force: on a GPU, or on a CPU in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import brute
import numpy as np
import pytest
import torch

from patchindex import exact
from patchindex.exact import choice, fused, fused_device
from patchindex.exact.fused_device import LARGE_GPU, Settings
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages

pytest.importorskip("triton", minversion="3.2", reason="Triton 3.2 is not installed")

MACHINES = [name for name in brute.MACHINES if name != "IS"]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# As for the CPU's kernel: logits up to 1e3 at t >= 0.3, rounded by 6e-8 relative a few times on the way, and
# up to 3e4 at t = 0.05.
FLOAT32, LOW_NOISE = 2e-5, 5e-4


def bound(t):
    return FLOAT32 if t >= 0.3 else LOW_NOISE


def request_of(images, x, t, name, k, **settings):
    training = images if isinstance(images, TrainingImages) else TrainingImages(images)
    geometry = Geometry.of(k=k, size=training.size, **brute.settings_of(name))
    x = torch.from_numpy(x).float().to(DEVICE)
    return exact.ScoreRequest(training, geometry, x, brute.beta_of(t), engine="fused", **settings)


def assert_same(a, b, tolerance=FLOAT32):
    torch.testing.assert_close(a.mean(), b.mean(), rtol=0, atol=tolerance)
    torch.testing.assert_close(a.log_weight(), b.log_weight(), rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(a.ess(), b.ess(), rtol=1e-3, atol=0)
    assert torch.equal(a.count, b.count)


def assert_agrees_with_brute_force(images, x, t, name, k):
    state = exact.scan(request_of(images, x, t, name, k))[0]
    truth = brute.posterior_mean(images, x[0], brute.beta_of(t), name, k)
    mean = state.mean().permute(2, 0, 1).cpu().numpy()
    assert np.abs(mean - truth.mean).max() < bound(t) * np.abs(truth.mean).max()
    atol = 1e-3 if t >= 0.3 else 2e-2  # nats of logits that cancel: 6e-8 of 3e4, several times
    np.testing.assert_allclose(state.log_weight().cpu(), truth.log_weight, rtol=1e-6, atol=atol)
    np.testing.assert_allclose(state.ess().cpu(), truth.ess, rtol=1e-3 if t >= 0.3 else 1e-2)
    np.testing.assert_array_equal(state.count.cpu(), truth.count)


class Wide(Settings):
    """Settings for the interpreter, where an operation takes the same time for any number of columns."""

    def of_program(self, rows, layout):
        return super().of_program(rows, layout) | {"BN": 1024}


def use(monkeypatch, settings):
    monkeypatch.setitem(choice.ENGINES, "fused", fused.Fused(settings))


@pytest.fixture
def few_programs(monkeypatch):
    if DEVICE.type == "cpu":
        use(monkeypatch, Wide(1, LARGE_GPU, 1024))


def small(name):
    """Return a size for a machine: the interpreter takes long for each position class of a block."""
    return {"LS": (2, 3), "bbELS": (4, 5)}.get(name, (6, 7))


CASES = [
    ("LS", 1, (2, 3), 20, 3), ("LS", 5, (4, 3), 70, 3), ("LS", 9, (2, 6), 9, 1), ("LS", 31, (2, 2), 9, 3),
    ("ELS", 1, (5, 6), 20, 3), ("ELS", 3, (8, 7), 33, 1), ("ELS", 5, (9, 6), 5, 3), ("ELS", 9, (10, 9), 9, 3),
    ("ELS-wrapped", 3, (8, 7), 33, 1), ("ELS-wrapped", 5, (6, 9), 5, 3), ("ELS-wrapped", 13, (7, 6), 9, 3),
    ("bbELS", 1, (5, 6), 20, 3), ("bbELS", 3, (8, 7), 33, 1), ("bbELS", 5, (5, 8), 9, 3),
    ("bbELS", 31, (2, 4), 9, 3),
]  # fmt: skip


@pytest.mark.parametrize("t", [0.05, 0.5])
@pytest.mark.parametrize(("name", "k", "size", "n", "channels"), CASES)
def test_the_kernel_agrees_with_brute_force(real_images, name, k, size, n, channels, t):
    images, x = brute.images_and_query(real_images, n, size, channels, t)
    assert_agrees_with_brute_force(images, x, t, name, k)


@pytest.mark.parametrize(("name", "streamed"), [("ELS", False), ("ELS", True), ("bbELS", True)])
def test_long_windows_are_streamed(real_images, monkeypatch, name, streamed):
    """Windows of 289 numbers never fit into a program; windows of 49 numbers do not where memory is small."""
    k, size = (17, (17, 18)) if not streamed else (7, (9, 12))
    settings = Settings(1, 8 << 10) if streamed else fused_device.settings_of(DEVICE)
    use(monkeypatch, settings)
    images, x = brute.images_and_query(real_images, 12, size, 1, 0.5)
    request = request_of(images, x, 0.5, name, k)
    assert not fused._Frame(request, images, settings).tables.layout.held
    assert_agrees_with_brute_force(images, x, 0.5, name, k)


@pytest.mark.parametrize("name", ["ELS", "ELS-wrapped"])
@pytest.mark.parametrize("t", [0.05, 0.5])
def test_dark_images(real_images, name, t):
    """Distances are small differences of large numbers unless a grey level is subtracted."""
    images, _ = brute.images_and_query(real_images, 30, (10, 10), 1, t)
    images = images // 64
    x = brute.noisy(images[:1], t, seed=3)
    assert_agrees_with_brute_force(images, x, t, name, 5)


@pytest.mark.parametrize("beta", [1e-6, 1 - 1e-9])
def test_noise_near_nothing_and_near_everything(real_images, beta):
    """Query windows in the units of logits are then up to 1e4 or down to 1e-6, where float16 ends."""
    images, x = brute.images_and_query(real_images, 12, (8, 8), 1, 0.5)
    x = images[:1].transpose(0, 3, 1, 2) / 127.5 - 1 if beta < 0.5 else x
    request = replace(request_of(images, x, 0.5, "ELS", 3), beta=beta)
    state = exact.scan(request)
    truth = brute.posterior_mean(images, request.x[0].cpu().numpy(), beta, "ELS", 3)
    np.testing.assert_allclose(state.mean()[0].permute(2, 0, 1).cpu(), truth.mean, rtol=0, atol=LOW_NOISE)
    if beta > 0.5:
        np.testing.assert_allclose(state.ess()[0].cpu(), truth.ess, rtol=1e-5)


@pytest.mark.parametrize("name", MACHINES)
def test_some_pixels_of_some_images(real_images, name):
    size = small(name)
    images, x = brute.images_and_query(real_images, 30, size, 3, 0.4, queries=3)
    mask = torch.from_numpy(np.random.default_rng(0).random((3, *size)) < 0.3)
    mask[1] = False
    whole = exact.scan(request_of(images, x, 0.4, name, 3))
    assert_same(exact.scan(request_of(images, x, 0.4, name, 3, pixels=mask)), whole[mask.to(DEVICE)], 1e-6)
    few = [torch.tensor([5, 3, 3]), torch.tensor([], dtype=torch.int64), torch.tensor([0])]
    found = exact.scan(request_of(images, x, 0.4, name, 3, pixels=few))
    assert_same(found[:3], whole[0].reshape((-1,))[[5, 3, 3]], 1e-6)
    assert_same(found[3:], whole[2].reshape((-1,))[[0]], 1e-6)


@pytest.mark.parametrize("name", ["LS", "ELS", "bbELS"])
def test_a_label_restricts_to_its_images(real_images, name):
    size = small(name)
    images, labels = real_images(40, size, classes=(1, 4, 9))
    _, x = brute.images_and_query(real_images, 1, size, 1, 0.4)
    found = exact.scan(request_of(TrainingImages(images, labels), x, 0.4, name, 3, label=4))
    assert_same(found, exact.scan(request_of(images[labels == 4], x, 0.4, name, 3)), 1e-6)


@pytest.mark.parametrize("name", MACHINES)
def test_memory_batches_and_segments_change_nothing(real_images, monkeypatch, name):
    """Blocks of one image and of all, queries alone and together, and one segment for each image."""
    size = small(name)
    images, x = brute.images_and_query(real_images, 4, size, 3, 0.4, queries=3)
    request = request_of(images, x, 0.4, name, 3)
    usual = exact.scan(request)
    assert_same(exact.scan(replace(request, memory=1)), usual, 1e-6)
    alone = [exact.scan(request.select(slice(i, i + 1))) for i in range(3)]
    for i in range(3):
        assert_same(alone[i][0], usual[i], 1e-6)
    use(monkeypatch, Settings(10_000, LARGE_GPU, columns=1))
    assert_same(exact.scan(request), usual, 1e-6)


def test_many_segments_are_merged(real_images, monkeypatch):
    """More than a program merges at a time, and no multiple."""
    images, x = brute.images_and_query(real_images, 71, (4, 4), 1, 0.4)
    request = request_of(images, x, 0.4, "ELS", 3)
    usual = exact.scan(request)
    use(monkeypatch, Settings(10_000, LARGE_GPU, 1024, columns=1))
    assert_same(exact.scan(request), usual, 1e-6)


@pytest.mark.parametrize("memory", [1, 256 << 20])
@pytest.mark.parametrize("name", ["LS", "ELS", "bbELS"])
def test_parts_of_the_images(real_images, name, memory):
    """Parts that end inside blocks and at their ends, of all images and of a selection in another order."""
    size = small(name)
    images, x = brute.images_and_query(real_images, 8, size, 3, 0.4)
    request = request_of(images, x, 0.4, name, 3, memory=memory)
    order = np.random.default_rng(0).permutation(8)
    for numbers, bounds in ((np.arange(8), [0, 1, 5, 8]), (order, [1, 2, 4, 7])):
        asked = replace(request, training=request.training.select(numbers))
        parts = exact.scan_parts(asked, bounds)
        assert parts.weight.shape == (3, 1, *size)
        for i, (lo, hi) in enumerate(pairwise(bounds)):
            mine = replace(request, training=request.training.select(numbers[lo:hi]), memory=256 << 20)
            assert_same(parts[i], exact.scan(mine), 1e-6)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="tensor cores truncate by themselves")
def test_sums_that_are_truncated_keep_the_bounds(real_images, few_programs, monkeypatch):
    """Tensor cores add eight or sixteen products at a time, and round each sum towards zero."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    calls = []

    def truncated(self, a, b, d, *_):
        calls.append(a.data.shape)
        total = d.data.astype(np.float32)
        for first in range(0, a.data.shape[1], 8):
            part = slice(first, first + 8)
            exactly = a.data[:, part].astype(np.float64) @ b.data[part].astype(np.float64) + total
            total = exactly.astype(np.float32)
            total = np.where(np.abs(total) > np.abs(exactly), np.nextafter(total, np.float32(0)), total)
        return interpreter.TensorHandle(total, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", truncated)
    for k, t in ((7, 0.05), (17, 0.3)):
        images, x = brute.images_and_query(real_images, 30, (17, 19), 3, t)
        assert_agrees_with_brute_force(images, x, t, "ELS", k)
    assert {shape[1] for shape in calls} == {32, 64, 128}


def test_ess_reaches_the_number_of_patches(real_images):
    images, x = brute.images_and_query(real_images, 30, (8, 8), 1, 0.4)
    state = exact.scan(replace(request_of(images, x, 0.4, "ELS", 3), beta=1 - 1e-12))
    torch.testing.assert_close(state.ess(), state.count.double(), rtol=1e-6, atol=0)
    assert (state.ess() <= state.count).all()


def test_progress_grows_to_one(real_images):
    shares = []
    images, x = brute.images_and_query(real_images, 10, (7, 7), 1, 0.4, queries=2)
    exact.scan(
        request_of(
            images, x, 0.4, "ELS", 3, memory=1, progress=lambda _, done, total: shares.append(done / total)
        )
    )
    assert len(shares) == 20
    assert shares == sorted(shares)
    assert shares[-1] == 1


def golden_cases(path, every):
    """Yield each golden case, with the numbers of some of its pixels."""
    with np.load(path) as archive:
        golden = {key: archive[key] for key in archive.files}
    training = TrainingImages(golden["images"], golden["labels"])
    pixels = torch.arange(0, golden["x"][0, 0].size, every)
    for i in np.flatnonzero(golden["machine"] != "IS"):
        label = int(golden["label"][i])
        request = exact.ScoreRequest(
            training,
            Geometry.of(k=int(golden["k"][i]), size=training.size, **brute.settings_of(golden["machine"][i])),
            torch.from_numpy(golden["x"][i : i + 1]).float().to(DEVICE),
            float(golden["beta"][i]),
            label=None if label < 0 else label,
            pixels=[pixels],
            engine="fused",
        )
        yield (
            request,
            golden["posterior_mean"][i].reshape(training.channels, -1)[:, pixels],
            float(golden["t"][i]),
        )


def assert_golden(path, every):
    seen = 0
    for request, expected, t in golden_cases(path, every):
        mean = exact.scan(request).mean().T.cpu().numpy()
        error = np.abs(mean - expected).max() / np.abs(expected).max()
        assert error < bound(t), (request.geometry.machine, request.geometry.k, t, request.label)
        seen += 1
    return seen


# Every pixel of every case takes minutes in the interpreter, and a second on a GPU.
def test_golden_cases(request, few_programs):
    path = Path(request.config.rootpath) / "tests" / "golden_fashion.npz"
    assert assert_golden(path, 1 if DEVICE.type == "cuda" else 101) == 96


@pytest.mark.slow
def test_shared_golden_cases(shared_file, few_programs):
    assert assert_golden(shared_file("golden/cifar10_40.npz"), 1 if DEVICE.type == "cuda" else 411) == 96


def test_the_settings_of_the_cpu_stand_for_a_large_gpu():
    settings = fused_device.settings_of(torch.device("cpu"))
    assert (settings.most_held, settings.shared) == (256, LARGE_GPU)
