"""Exact scans by several devices give the states of one device, whatever the machine, labels and pixels."""

from __future__ import annotations

import pickle
from threading import get_ident

import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.errors import InputError
from patchindex.exact import DeviceShards, ScoreRequest, scan, scan_parts, shards
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages

CPU = torch.device("cpu")
BETA = 0.4


@pytest.fixture(scope="module")
def data(real_images):
    return real_images(23, 12)


@pytest.fixture(scope="module")
def training(data):
    return TrainingImages(*data)


@pytest.fixture(scope="module")
def x(real_images):
    clean = torch.from_numpy(real_images(2, 12, skip=100)[0]).permute(0, 3, 1, 2) / 127.5 - 1
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    return (1 - BETA) ** 0.5 * clean + BETA**0.5 * noise


def request_of(training, x, machine="ELS", k=3, **more):
    return ScoreRequest(training, Geometry.of(machine, k, (12, 12)), x, BETA, **more)


def assert_same(one, other):
    # Sums of the same float32 tiles, in another order.
    torch.testing.assert_close(one.mean(), other.mean(), rtol=0, atol=1e-6)
    torch.testing.assert_close(one.log_weight(), other.log_weight(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(one.ess(), other.ess(), rtol=1e-4, atol=0)
    assert torch.equal(one.count, other.count)


@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize(
    ("machine", "label"), [("ELS", None), ("ELS", 3), ("bbELS", 0), ("LS", None), ("IS", 3)]
)
def test_several_devices_give_the_state_of_one(training, x, machine, label, devices):
    request = request_of(training, x, machine, label=label)
    assert_same(DeviceShards([CPU] * devices).scan(request), scan(request))


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton runs on a GPU here")
def test_the_fused_kernel_runs_in_several_threads(training, x):
    pytest.importorskip("triton", minversion="3.2")
    request = request_of(training, x[:1], engine="fused")
    assert_same(DeviceShards([CPU, CPU]).scan(request), scan(request))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_some_pixels_are_those_of_one_device(training, x, dtype):
    mask = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(1)) < 0.3
    numbers = [m.flatten().nonzero()[:, 0] for m in mask]
    for pixels in (mask, numbers):
        request = request_of(training, x, pixels=pixels, dtype=dtype)
        assert_same(DeviceShards([CPU, CPU]).scan(request), scan(request))


def test_more_devices_than_images_of_a_label_or_than_images(training, x):
    several = DeviceShards([CPU] * 30)
    for label in (None, int(training.labels[0])):
        request = request_of(training, x, label=label)
        assert_same(several.scan(request), scan(request))


@pytest.mark.parametrize("labelled", [True, False])
def test_images_and_the_images_of_each_label_are_divided_equally(data, training, x, monkeypatch, labelled):
    scanned, real = [], shards.scan_parts

    def note(request, bounds):
        scanned.append(request.training)
        return real(request, bounds)

    monkeypatch.setattr(shards, "scan_parts", note)
    several = DeviceShards([CPU] * 3)
    several.scan(request_of(training if labelled else TrainingImages(data[0]), x))
    assert {len(shard) for shard in scanned} == {7, 8}
    everything = np.concatenate([shard.read(0, len(shard)) for shard in scanned])
    assert sorted(map(bytes, everything)) == sorted(map(bytes, data[0]))
    for label in np.unique(data[1]) if labelled else ():
        scanned.clear()
        several.scan(request_of(training, x, label=int(label)))
        counts = [len(shard) for shard in scanned]
        assert sum(counts) == (data[1] == label).sum()
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("devices", [2, 3, 30])
@pytest.mark.parametrize("label", [None, 3])
def test_the_states_of_parts_are_those_of_one_device(training, x, devices, label):
    request = request_of(training, x, label=label)
    lo, hi = request.image_range
    bounds = sorted({0, 1, (hi - lo) // 2, hi - lo})
    assert_same(DeviceShards([CPU] * devices).scan_parts(request, bounds), scan_parts(request, bounds))


def test_images_in_another_order_share_the_shards(training, x):
    several, held = DeviceShards([CPU, CPU]), set()
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(training))[:17]
        request = request_of(training.select(order), x)
        assert_same(several.scan(request), scan(request))
        assert_same(several.scan_parts(request, [0, 4, 9, 17]), scan_parts(request, [0, 4, 9, 17]))
        held.add(id(several._held))
    assert len(held) == 1


def test_parts_that_do_not_ascend_are_refused(training, x):
    with pytest.raises(InputError, match="bounds: must ascend within 0 to 23"):
        DeviceShards([CPU, CPU]).scan_parts(request_of(training, x), [0, 5, 5])


def test_an_unknown_label_is_refused(training, x):
    with pytest.raises(InputError, match="no image has label 77"):
        DeviceShards([CPU, CPU]).scan(request_of(training, x, label=77))


def test_progress_comes_in_the_thread_of_the_caller_and_ends_at_one(training, x):
    reported = []
    progress = lambda stage, done, total: reported.append((get_ident(), stage, done / total))  # noqa: E731
    DeviceShards([CPU, CPU]).scan(request_of(training, x, progress=progress))
    assert {thread for thread, _, _ in reported} == {get_ident()}
    shares = [share for _, _, share in reported]
    assert shares == sorted(shares)
    assert reported[-1][1:] == ("exact scan", 1)


def test_a_callback_that_raises_ends_the_scans_of_all_devices(training, x):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        DeviceShards([CPU, CPU]).scan(request_of(training, x, progress=stop))


def test_the_error_of_a_device_reaches_the_caller(training, x, monkeypatch):
    def fail(*_):
        raise MemoryError("no room on a device")

    monkeypatch.setattr(shards, "scan_parts", fail)
    with pytest.raises(MemoryError, match="no room on a device"):
        DeviceShards([CPU, CPU]).scan(request_of(training, x))


def test_devices_that_are_the_same_share_the_memory(training, x, monkeypatch):
    given, real = [], shards.scan_parts

    def note(request, bounds):
        given.append(request.memory)
        return real(request, bounds)

    monkeypatch.setattr(shards, "scan_parts", note)
    DeviceShards([CPU, CPU]).scan(request_of(training, x, memory=1 << 20))
    assert given == [1 << 19] * 2


def test_a_machine_of_several_devices_gives_the_scores_of_one(data, x):
    machine = pi.ScoreMachine(*data, locality=[3, 5], device="cpu,cpu")
    one = pi.ScoreMachine(*data, locality=[3, 5])
    assert machine.settings["device"] == "cpu,cpu"
    assert machine.devices == (CPU, CPU)
    for label in (None, 3):
        a, b = (m.posterior_mean(x, 0.5, label=label) for m in (machine, one))
        torch.testing.assert_close(a.mean, b.mean, rtol=0, atol=1e-6)
        assert a.patches_evaluated == b.patches_evaluated
    again = pickle.loads(pickle.dumps(machine))
    assert torch.equal(again.posterior_mean(x, 0.5).mean, machine.posterior_mean(x, 0.5).mean)
    assert torch.allclose(machine.exact()(x, 0.5), one(x, 0.5), atol=1e-5)


def test_pickling_leaves_out_the_images_of_the_devices(data, x):
    machine = pi.ScoreMachine(*data, locality=3, device="cpu,cpu")
    before = len(pickle.dumps(machine))
    machine.posterior_mean(x, 0.5)
    assert len(pickle.dumps(machine)) == before


def test_samples_of_several_devices_are_those_of_one(data):
    images = [
        pi.sample(pi.ScoreMachine(*data, locality=3, device=device), n=2, steps=4, seed=5).images
        for device in ("cpu", "cpu,cpu")
    ]
    torch.testing.assert_close(*images, rtol=0, atol=1e-4)  # as `sample` promises


@pytest.mark.parametrize("labels", [True, False])
def test_auto_samples_the_same_images_on_several_devices(real_images, labels):
    images, of_images = real_images(1500, 12)
    x = torch.from_numpy(real_images(1, 12, skip=2000)[0]).permute(0, 3, 1, 2) / 127.5 - 1
    x = x + 2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    one, several = (
        pi.ScoreMachine(
            images, of_images if labels else None, estimator="auto", tolerance=0.1, device=device
        ).posterior_mean(x / 2.2, 0.7, k=3)
        for device in ("cpu", "cpu,cpu")
    )
    assert 0 < one.captured_mass.min() < 1
    assert one.patches_evaluated == several.patches_evaluated
    torch.testing.assert_close(several.mean, one.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(several.stderr, one.stderr, rtol=1e-3, atol=1e-6)


def test_several_devices_with_shards_of_a_cluster_are_refused(data):
    with pytest.raises(InputError, match="device: names several devices, and there are shards on a cluster"):
        pi.ScoreMachine(*data, locality=3, device="cpu,cpu", shards=DeviceShards([CPU]))
