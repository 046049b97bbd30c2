"""Lists of devices, the memory of a GPU, and torch's errors for lack of memory in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex import devices
from patchindex.devices import SHARE, enough_memory, memory_budget, out_of_memory, resolve_devices
from patchindex.errors import DeviceError, PatchIndexError

CPU, GPUS = torch.device("cpu"), [torch.device("cuda", i) for i in range(2)]
# What torch 2.13 says, with other numbers.
SAID = """CUDA out of memory. Tried to allocate 2.50 GiB. GPU 1 has a total capacity of 139.72 GiB of which
1.25 GiB is free. Process 12 has 3.00 GiB memory in use. Of the allocated memory 1.00 GiB is allocated by
PyTorch, and 5.00 MiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try
setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation."""


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def free(monkeypatch):
    """Bytes that are free on the GPUs, in torch's cache, and allocated."""
    numbers = {GPUS[0]: (1000, 300, 100), GPUS[1]: (500, 0, 0)}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (numbers[device][0], 9999))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: numbers[device][1])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: numbers[device][2])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, [CPU]),
        ("cpu", [CPU]),
        (CPU, [CPU]),
        ("cpu,cpu", [CPU, CPU]),
        ("cuda:1", GPUS[1:]),
        ("cuda:0, cuda:1", GPUS),
        ("cuda:all", GPUS),
    ],
)
def test_names_of_devices(two_gpus, name, expected):
    assert list(resolve_devices(name)) == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cuda:0,cuda:0", "device: 'cuda:0,cuda:0' names a GPU twice"),
        ("cuda,cuda:0", "names a GPU twice"),
        ("cuda:0,cuda:2", "device cuda:2: there are 2 CUDA devices; use a lower number"),
        ("cuda:0,", "unknown device ''"),
    ],
)
def test_devices_that_do_not_exist_are_refused(two_gpus, name, words):
    with pytest.raises(DeviceError, match=words):
        resolve_devices(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_all_gpus_without_a_gpu_are_refused():
    with pytest.raises(DeviceError, match="torch finds no CUDA device; use cpu"):
        resolve_devices("cuda:all")


def test_one_device_is_asked_for_where_several_cannot_work():
    with pytest.raises(DeviceError, match="device: 'cpu,cpu' names several devices; use one of them"):
        pi.build_index(np.zeros((5, 8, 8), np.uint8), "never.zarr", scales=[3], device="cpu,cpu")


def test_the_budget_of_a_gpu_is_most_of_what_is_available(free):
    assert memory_budget([CPU], None, 77) == 77
    assert memory_budget([CPU], 5, 77) == 5
    assert memory_budget(GPUS[:1], None, 77) == int(SHARE * 1200)
    assert memory_budget(GPUS, None, 77) == int(SHARE * 500)
    assert memory_budget(GPUS, 150, 77) == 150
    assert memory_budget(GPUS, 9000, 77) == int(SHARE * 500)


def test_the_message_of_torch_becomes_one_sentence():
    assert out_of_memory(Exception(SAID)) == "an array of 2.50 GiB does not fit into 1.25 GiB"
    assert out_of_memory(Exception("CUDA out of memory. Ask.")) == "CUDA out of memory"


def test_a_scan_without_enough_memory_says_what_to_make_smaller(monkeypatch):
    def fail(*_):
        raise torch.cuda.OutOfMemoryError(SAID)

    machine = pi.ScoreMachine(np.zeros((5, 8, 8), np.uint8), locality=3)
    monkeypatch.setattr(machine, "_estimate", fail)
    with pytest.raises(PatchIndexError) as caught:
        machine.posterior_mean(torch.zeros(1, 1, 8, 8), 0.5)
    assert str(caught.value) == (
        "device cuda:1: not enough memory: an array of 2.50 GiB does not fit into 1.25 GiB; "
        "use a smaller memory or batch_size"
    )
    assert caught.value.exit_code == 1


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="another"), enough_memory(CPU):
        raise RuntimeError("another")


@pytest.mark.parametrize("command_line", ["cuda:all", "cuda:0,cuda:1"])
def test_the_memory_of_a_denoiser_is_that_of_its_devices(two_gpus, free, command_line, monkeypatch):
    machine = pi.ScoreMachine(np.zeros((5, 8, 8), np.uint8), locality=3, device=command_line)
    assert machine._memory == int(SHARE * 500)
    monkeypatch.setattr(devices, "free_bytes", lambda device: 100)
    assert machine._memory == int(SHARE * 100)
