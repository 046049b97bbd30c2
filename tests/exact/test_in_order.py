"""Equal requests give equal bytes: sums of threads merge in a fixed order."""

from __future__ import annotations

from threading import Thread

import numpy as np
import pytest
import torch
import zarr

import patchindex as pi
from patchindex.estimators import AutoPolicy
from patchindex.exact.in_order import InOrder
from patchindex.runtime import threads

T = 0.3


def test_results_merge_in_the_order_of_their_numbers():
    merged = []
    merging = InOrder(merged.append)
    numbers = np.random.default_rng(0).permutation(200)
    workers = [
        Thread(target=lambda some: [merging.add(int(n), int(n)) for n in some], args=(part,))
        for part in np.array_split(numbers, 4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert merged == list(range(200))
    assert merging.done == 200


@pytest.fixture(scope="module")
def images(real_images):
    return real_images(400, 14)[0]  # 25 tiles


@pytest.fixture(scope="module")
def index(images, tmp_path_factory):
    return pi.build_index(images, tmp_path_factory.mktemp("s") / "s.zarr", machine="bbELS", scales=[3, 7])


@pytest.fixture(scope="module")
def x(real_images):
    clean = torch.from_numpy(real_images(3, 14, skip=900)[0].transpose(0, 3, 1, 2) / 127.5 - 1)
    noise = np.random.default_rng(0).standard_normal(clean.shape)
    return (0.9 * clean + 0.45 * torch.from_numpy(noise)).float()


def assert_equal_bytes(a, b):
    for name in ("mean", "stderr", "ess", "captured_mass"):
        assert getattr(a, name).numpy().tobytes() == getattr(b, name).numpy().tobytes()
    assert a.patches_evaluated == b.patches_evaluated


@pytest.mark.parametrize("machine", ["LS", "ELS", "bbELS"])
@pytest.mark.parametrize("k", [3, 7])
def test_exact_gives_equal_bytes_on_any_number_of_threads(images, x, machine, k):
    means = [
        pi.ScoreMachine(images, machine=machine, threads=n).posterior_mean(x, T, k) for n in (1, 2, 3, 7, 2)
    ]
    for other in means[1:]:
        assert_equal_bytes(means[0], other)


@pytest.mark.parametrize(
    ("machine", "side", "memory"), [("LS", 128, None), ("LS", 14, "4M"), ("ELS", 14, "2M")]
)
def test_exact_gives_equal_bytes_on_any_number_of_threads_in_short_memory(machine, side, memory):
    images = np.random.default_rng(0).integers(0, 256, (40, side, side, 3), np.uint8)
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 3, side, side), np.float32))
    means = [
        pi.ScoreMachine(images, machine=machine, threads=n, memory=memory).posterior_mean(x, T, 3)
        for n in (1, 2, 4, 16)
    ]
    for other in means[1:]:
        assert_equal_bytes(means[0], other)


def test_exact_gives_equal_bytes_on_any_number_of_threads_from_chunks_of_any_size(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5000, 8, 8), np.uint8)
    zarr.create_array(tmp_path / "images.zarr", data=images, chunks=(10, 8, 8))
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 1, 8, 8), np.float32))
    means = [
        pi.ScoreMachine(source, machine="ELS", threads=n, memory="2M").posterior_mean(x, T, 3)
        for source, n in ((images, 1), (tmp_path / "images.zarr", 1), (tmp_path / "images.zarr", 4))
    ]
    for other in means[1:]:
        assert_equal_bytes(means[0], other)


@pytest.mark.parametrize("machine", ["LS", "ELS", "bbELS"])
@pytest.mark.parametrize("n", [20, 400])
def test_samples_with_exact_have_equal_bytes_in_any_batches(images, machine, n):
    m = pi.ScoreMachine(images[:n], machine=machine, locality=[3, 3, 5, 7], threads=2)
    one, three, eight = (pi.sample(m, n=8, steps=6, batch_size=size).images for size in (1, 3, 8))
    assert torch.equal(one, three)
    assert torch.equal(one, eight)


@pytest.mark.parametrize("policy", [AutoPolicy(), AutoPolicy(cost_limit=np.inf)])  # exact scores; samples
def test_samples_with_auto_have_equal_bytes_in_any_batches(index, policy):
    options = {"estimator": "auto", "probes": 8, "candidates": 32, "policy": policy}
    m = pi.ScoreMachine(index, locality=[3, 3, 7, 7], threads=2, **options)
    one, three, eight = (pi.sample(m, n=8, steps=12, batch_size=size).images for size in (1, 3, 8))
    assert torch.equal(one, three)
    assert torch.equal(one, eight)


@pytest.mark.parametrize("name", ["IS", "wiener", "topk"])
def test_samples_of_other_estimators_agree_in_any_batches(images, index, name):
    if name in pi.ESTIMATORS:
        m = pi.ScoreMachine(index, estimator=name, probes=8, candidates=32, locality=[3, 3, 7, 7], threads=2)
    else:
        m = pi.denoiser(name, images[:60], threads=2)
    one, eight = (pi.sample(m, n=8, steps=20, batch_size=size).images for size in (1, 8))
    torch.testing.assert_close(one, eight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tolerance", [0.05, 0.005])
def test_auto_gives_equal_bytes_on_equal_threads(index, x, tolerance):
    options = {"estimator": "auto", "tolerance": tolerance, "probes": 8, "candidates": 32}
    means = [
        pi.ScoreMachine(index, threads=n, **options).posterior_mean(x, T, 7, seed=1) for n in (2, 1, 3, 2, 2)
    ]
    assert_equal_bytes(means[0], means[3])
    assert_equal_bytes(means[0], means[4])
    for other in means[1:]:
        torch.testing.assert_close(other.mean, means[0].mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", pi.ESTIMATORS)
def test_samples_of_equal_settings_have_equal_bytes(index, name):
    machine = pi.ScoreMachine(index, estimator=name, locality=[3, 3, 7, 7], threads=2)
    first, second = (pi.sample(machine, n=2, steps=6, seed=3).images for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", sorted(pi.DENOISERS))
def test_denoisers_of_equal_settings_give_equal_bytes(images, x, name):
    options = {"locality": [3, 3, 7, 7]} if name in ("LS", "ELS", "bbELS", "pspc") else {}
    first, second = (
        pi.denoiser(name, images[:60], threads=2, **options).posterior_mean(x, T, seed=3) for _ in range(2)
    )
    assert_equal_bytes(first, second)


@pytest.mark.parametrize("name", sorted(pi.DENOISERS))
def test_denoisers_agree_to_a_tolerance_on_other_threads_and_batches(images, x, name):
    options = {"locality": [3, 3, 7, 7]} if name in ("LS", "ELS", "bbELS", "pspc") else {}
    expected = pi.denoiser(name, images[:60], threads=1, **options).posterior_mean(x, T, seed=3).mean
    machine = pi.denoiser(name, images[:60], threads=2, **options)
    one_by_one = [machine.posterior_mean(x[i : i + 1], T, seed=3, image_ids=[i]).mean for i in range(3)]
    for found in (machine.posterior_mean(x, T, seed=3).mean, torch.cat(one_by_one)):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)  # sums of float32 in another order


def test_a_thread_that_fails_ends_the_scan(images, x, monkeypatch):
    """The other threads wait for the sums of the tile that failed: they end, too."""

    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("patchindex.exact.cpu.prepare", broken)
    with threads(3), pytest.raises(ZeroDivisionError):
        pi.ScoreMachine(images, machine="ELS").posterior_mean(x, T, 3)
