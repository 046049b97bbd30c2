"""Several threads share a store or a denoiser: each gets what one thread alone gets, made once."""

from __future__ import annotations

import logging
import pickle
import time
from concurrent.futures import ThreadPoolExecutor, wait

import brute
import pytest
import torch

import patchindex as pi
from patchindex.runtime import PicklableLock

THREADS = 6


def on_threads(function, arguments):
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(function, arguments))


def test_threads_share_the_scales_of_a_store(real_images, tmp_path, caplog):
    """A thread gets its scale also where another thread opens as many scales as a store holds meanwhile."""
    images = real_images(6, 8)[0]
    index = pi.build_index(images, tmp_path / "s.zarr", scales=[1, 3, 5], lists=2)

    def scale(k):
        index.check_images(0, len(images))
        return index.scale(k).geometry.k

    with ThreadPoolExecutor(1) as other:
        opened = []

        def open_others(_):
            if not opened:
                opened.extend(other.submit(scale, k) for k in (3, 5))
                wait(opened, timeout=0.5)
            return True

        caplog.set_level(logging.DEBUG, "patchindex.index")  # a store logs each scale that it opens
        caplog.handler.addFilter(open_others)
        assert scale(1) == 1
        caplog.handler.removeFilter(open_others)
        assert [future.result() for future in opened] == [3, 5]
    asked = [1, 3, 5, 5, 3, 1] * 10
    assert on_threads(scale, asked) == asked


@pytest.mark.parametrize("name", ["wiener", "gaussian-mixture", "pca-locality"])
def test_threads_share_what_a_denoiser_keeps(real_images, name):
    images, labels = real_images(80, 6, classes=(0, 1))
    x = torch.from_numpy(brute.noisy(real_images(2, 6, skip=900)[0], 0.5))
    denoiser, made = pi.denoiser(name, images, labels, threads=1), []

    def progress(stage, done, total):
        if done < total:
            made.append(done)
            time.sleep(0.02)

    def mean(label):
        return denoiser.posterior_mean(x, 0.3, label=label, progress=progress).mean

    first, *others = on_threads(mean, [0] * THREADS)
    # A call begins with what the denoiser keeps, and only the first call has to make it.
    assert made.count(min(made)) == 1
    copy = pickle.loads(pickle.dumps(denoiser))
    for other in (*others, copy.posterior_mean(x, 0.3, label=0).mean):
        assert torch.equal(other, first)


def test_a_thread_may_take_a_lock_again_and_a_copy_of_the_lock_is_free():
    lock = PicklableLock()
    copy = pickle.loads(pickle.dumps(lock))

    def take(each):
        with each:
            return True

    with ThreadPoolExecutor(2) as threads:
        with lock, lock:
            assert threads.submit(take, copy).result(10)
            waiting = threads.submit(take, lock)
            time.sleep(0.05)
            assert not waiting.done()
        assert waiting.result(10)
