"""Lists of devices, the memory of a GPU, and torch's errors for lack of memory in one line."""

from __future__ import annotations

from types import SimpleNamespace

import fake_gpu
import numpy as np
import pytest
import torch

import patchindex as pi
from patchindex.devices import (
    ACCELERATORS,
    SHARE,
    CudaDevices,
    MpsDevices,
    XpuDevices,
    enough_memory,
    float64_device,
    in_float64,
    memory_budget,
    numbered,
    out_of_memory,
    resolve_device,
    resolve_devices,
    to_float64,
)
from patchindex.errors import DeviceError, PatchIndexError

CPU, GPUS = torch.device("cpu"), [torch.device("cuda", i) for i in range(2)]
# What torch 2.13 says, with other numbers.
SAID = """CUDA out of memory. Tried to allocate 2.50 GiB. GPU 1 has a total capacity of 139.72 GiB of which
1.25 GiB is free. Process 12 has 3.00 GiB memory in use. Of the allocated memory 1.00 GiB is allocated by
PyTorch, and 5.00 MiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try
setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation."""


@pytest.fixture
def two_gpus(monkeypatch):
    """Two GPUs with 1200 and 500 free bytes."""
    gpus = fake_gpu.Fake([1200, 500])
    monkeypatch.setitem(ACCELERATORS, "cuda", gpus)
    return gpus


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
        ("cuda:0,", "unknown device ''; use cpu, cuda, mps or xpu"),
        ("hpu", "'hpu' is not supported; use cpu, cuda, mps or xpu"),
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


def test_the_budget_of_a_gpu_is_most_of_what_is_available(two_gpus):
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
def test_the_memory_of_a_denoiser_is_that_of_its_devices(two_gpus, command_line):
    machine = pi.ScoreMachine(np.zeros((5, 8, 8), np.uint8), locality=3, device=command_line)
    assert machine._memory == int(SHARE * 500)
    two_gpus.free = [100, 100]
    assert machine._memory == int(SHARE * 100)


MPS, XPU = torch.device("mps"), torch.device("xpu", 0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mps", "device mps: torch finds no MPS device; use cpu"),
        ("xpu:0", "device xpu:0: torch finds no XPU"),
    ],
)
def test_devices_that_torch_does_not_find_are_refused(monkeypatch, name, words):
    monkeypatch.setitem(ACCELERATORS, name[:3], fake_gpu.Fake([]))
    with pytest.raises(DeviceError, match=words) as caught:
        resolve_devices(name)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_devices_that_torch_finds_are_accepted(monkeypatch, kind):
    monkeypatch.setitem(ACCELERATORS, kind, fake_gpu.Fake([7]))
    assert resolve_device(kind) == torch.device(kind)
    assert resolve_devices(f"{kind}:0") == (numbered(torch.device(kind)),)
    with pytest.raises(DeviceError, match=f"there is one {kind.upper()} device; use a lower number"):
        resolve_device(f"{kind}:1")


def test_bytes_that_torch_keeps_for_itself_are_free():
    cuda = SimpleNamespace(
        mem_get_info=lambda device: (1000, 9999),
        memory_reserved=lambda device: 300,
        memory_allocated=lambda device: 100,
    )
    assert CudaDevices(cuda).free_bytes(GPUS[0]) == XpuDevices(cuda).free_bytes(XPU) == 1200
    mps = SimpleNamespace(recommended_max_memory=lambda: 1000, current_allocated_memory=lambda: 300)
    assert MpsDevices(mps).free_bytes(MPS) == 700


def test_an_xpu_without_memory_info_has_what_the_process_leaves():
    properties = SimpleNamespace(total_memory=1000, has_fp64=False)
    xpu = SimpleNamespace(
        get_device_properties=lambda device: properties, memory_allocated=lambda device: 100
    )
    assert XpuDevices(xpu).free_bytes(XPU) == 900
    assert not XpuDevices(xpu).has_float64(XPU)


def test_torch_is_asked_for_devices():
    torch_cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 3,
        current_device=lambda: 2,
        get_device_capability=lambda device: (9, 0),
    )
    cuda = CudaDevices(torch_cuda)
    assert (cuda.count(), cuda.current(), cuda.capability(GPUS[0])) == (3, 2, (9, 0))
    torch_cuda.is_available = lambda: False
    assert cuda.count() == 0


def test_float64_is_on_the_cpu_where_a_device_has_none(monkeypatch):
    monkeypatch.setitem(ACCELERATORS, "xpu", fake_gpu.Fake([7], float64=False))
    assert float64_device(XPU) == float64_device("mps") == float64_device("cpu") == CPU
    assert float64_device(GPUS[0]) == GPUS[0]
    wide = to_float64(torch.ones(2))
    assert (wide.dtype, wide.device) == (torch.float64, CPU)
    assert in_float64([0.1, 0.2]).tolist() == [0.1, 0.2]
    assert in_float64(torch.tensor([0.5, 0.25])).dtype == torch.float64


# What torch says of other devices.
MPS_SAID = (
    "MPS backend out of memory (MPS allocated: 15.72 GiB, other allocations: 2.41 MiB, max allowed: "
    "18.13 GiB). Tried to allocate 5.81 GiB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to "
    "disable upper limit for memory allocations (may cause system failure)."
)
XPU_SAID = (
    "XPU out of memory. Tried to allocate 32.00 GiB. GPU 0 has a total capacity of 11.59 GiB of which 9.01 "
    "GiB is free. Of the allocated memory 0 bytes is allocated by PyTorch, and 0 bytes is reserved by "
    "PyTorch but unallocated. Please use `empty_cache` to release all unoccupied cached memory."
)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            RuntimeError(MPS_SAID),
            "device mps: not enough memory: an array of 5.81 GiB does not fit; use less",
        ),
        (
            torch.OutOfMemoryError(XPU_SAID),
            "device xpu:0: not enough memory: an array of 32.00 GiB does not fit into 9.01 GiB; use less",
        ),
        (
            RuntimeError("Invalid buffer size: 20.00 GB"),
            "device mps: not enough memory: an array of 20.00 GB does not fit; use less",
        ),
    ],
)
def test_other_devices_without_enough_memory_say_so_in_one_line(error, line):
    with pytest.raises(PatchIndexError) as caught, enough_memory(MPS, "use less"):
        raise error
    assert str(caught.value) == line
