"""Devices that compute: their names, their memory and number types, and errors for lack of memory.

`ACCELERATORS` has an entry for each type of device beside the CPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from patchindex.errors import DeviceError, Option, PatchIndexError, PatchIndexWarning, warn
from patchindex.runtime import faiss_gpus

__all__ = [
    "ACCELERATORS",
    "Accelerator",
    "CudaDevices",
    "MpsDevices",
    "XpuDevices",
    "check_dtype",
    "device_of_faiss",
    "enough_memory",
    "float64_device",
    "free_bytes",
    "in_float64",
    "is_out_of_memory",
    "memory_budget",
    "numbered",
    "out_of_memory",
    "resolve_device",
    "resolve_devices",
    "to_float64",
    "warn_of_faiss",
]

ALL = "cuda:all"
# A copy of the training images takes half of the free memory at most (`patchindex.images.on_device`). The
# rest is for libraries and kernels, and for gaps between the blocks of torch's allocator.
SHARE = 0.4  # of the free memory: temporary arrays


class Accelerator:
    """The devices of one type, as a module of torch describes them."""

    pins_memory = False  # True where blocks of images go to a device through pinned memory

    def __init__(self, module: Any) -> None:
        self._torch = module

    def count(self) -> int:
        """Return the number of devices that torch finds."""
        return int(self._torch.device_count()) if self._torch.is_available() else 0

    def current(self) -> int:
        """Return the number of the device that a name without a number stands for."""
        return int(self._torch.current_device())

    def free_bytes(self, device: torch.device) -> int:
        """Return the free bytes of a device, with the bytes that torch's allocator keeps for itself."""
        cached = self._torch.memory_reserved(device) - self._torch.memory_allocated(device)
        return int(self._torch.mem_get_info(device)[0] + cached)

    def has_float64(self, device: torch.device) -> bool:
        """Return whether a device computes in float64."""
        return True

    def capability(self, device: torch.device) -> tuple[int, int] | None:
        """Return the compute capability of an NVIDIA GPU, None for any other device."""
        return None

    def pin(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor in pinned memory."""
        return tensor.pin_memory()


class CudaDevices(Accelerator):
    """The devices of `torch.cuda`, which may also be AMD's."""

    pins_memory = True

    def capability(self, device: torch.device) -> tuple[int, int] | None:
        """Return the compute capability of an NVIDIA GPU."""
        return None if torch.version.hip is not None else self._torch.get_device_capability(device)


class XpuDevices(Accelerator):
    """The devices of `torch.xpu`: Intel's GPUs, some of which have no float64."""

    def free_bytes(self, device: torch.device) -> int:
        """Return the free bytes of a device; before torch 2.6, what this process leaves free."""
        if hasattr(self._torch, "mem_get_info"):
            return super().free_bytes(device)
        whole = self._torch.get_device_properties(device).total_memory
        return int(whole - self._torch.memory_allocated(device))

    def has_float64(self, device: torch.device) -> bool:
        """Return whether a device computes in float64."""
        return bool(self._torch.get_device_properties(device).has_fp64)


class MpsDevices(Accelerator):
    """The device of `torch.mps`: Apple's GPU, which has no float64."""

    def count(self) -> int:
        """Return 1 where torch finds the device, else 0."""
        return int(torch.backends.mps.is_available())

    def current(self) -> int:
        """Return the number of the only device."""
        return 0

    def free_bytes(self, device: torch.device) -> int:
        """Return the bytes that Metal recommends, less the bytes of this process's tensors."""
        # `driver_allocated_memory` would count what torch's allocator keeps as taken.
        return max(0, self._torch.recommended_max_memory() - self._torch.current_allocated_memory())

    def has_float64(self, device: torch.device) -> bool:
        """Return False."""
        return False


ACCELERATORS: dict[str, Accelerator] = {
    "cuda": CudaDevices(torch.cuda),
    "mps": MpsDevices(torch.mps),
    "xpu": XpuDevices(torch.xpu),
}
KNOWN = "use cpu, cuda, mps or xpu"


def resolve_device(device: str | torch.device | None, *, needs_faiss: bool = False) -> torch.device:
    """Return the device of this name: `cpu` (also None), or a `cuda`, `mps` or `xpu` device that torch finds.

    With `needs_faiss`, return the device of FAISS: the CPU for `mps` and `xpu`, with a warning.

    Raises
    ------
    DeviceError
        When there is no such device, or when FAISS is needed on a CUDA device and has no GPU support.
    """
    if isinstance(device, str) and ("," in device or device.endswith(":all")):
        raise DeviceError(f"{device!r} names several devices", parameter="device", remedy="use one of them")
    try:
        found = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError, ValueError):
        raise DeviceError(f"unknown device {device!r}", parameter="device", remedy=KNOWN) from None
    if found.type == "cpu":
        return found
    if found.type not in ACCELERATORS:
        raise DeviceError(f"{found.type!r} is not supported", parameter="device", remedy=KNOWN)
    count, kind = ACCELERATORS[found.type].count(), found.type.upper()
    if not count:
        raise DeviceError(f"torch finds no {kind} device", where=f"device {found}", remedy="use cpu")
    if found.index is not None and found.index >= count:
        there = f"there are {count} {kind} devices" if count > 1 else f"there is one {kind} device"
        raise DeviceError(there, where=f"device {found}", remedy="use a lower number")
    if not needs_faiss:
        return found
    if found.type == "cuda" and not faiss_gpus():
        raise DeviceError(
            "the installed faiss has no GPU support",
            where=f"device {found}",
            remedy="pip uninstall faiss-cpu, then pip install 'patchindex[gpu]'; or use cpu",
        )
    warn_of_faiss(found)
    return device_of_faiss(found)


def resolve_devices(device: str | torch.device | None) -> tuple[torch.device, ...]:
    """Return the devices of a name, of a list such as `cuda:0,cuda:1`, or all GPUs for `cuda:all`.

    Raises
    ------
    DeviceError
        When a device does not exist, or when the list names a GPU twice.

    Examples
    --------
    >>> resolve_devices("cpu,cpu")
    (device(type='cpu'), device(type='cpu'))
    >>> resolve_devices("cpu,tpu")
    Traceback (most recent call last):
        ...
    patchindex.errors.DeviceError: device: unknown device 'tpu'; use cpu, cuda, mps or xpu
    """
    if device == ALL:
        device = ",".join(f"cuda:{i}" for i in range(ACCELERATORS["cuda"].count())) or "cuda"
    if not isinstance(device, str) or "," not in device:
        return (resolve_device(device),)
    found = tuple(resolve_device(name.strip()) for name in device.split(","))
    # A name without a number may be another name of the first device.
    named = [(one.type, one.index or 0) for one in found if one.type != "cpu"]
    if len({*named}) < len(named):
        raise DeviceError(f"{device!r} names a GPU twice", parameter="device", remedy="name each GPU once")
    return found


def device_of_faiss(device: torch.device) -> torch.device:
    """Return the device where FAISS works for a device: the device itself for CUDA, else the CPU."""
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def warn_of_faiss(device: torch.device) -> None:
    """Warn that FAISS works on the CPU where it does not support a device."""
    if device_of_faiss(device).type != device.type:
        warn(
            PatchIndexWarning(
                f"FAISS has no {device.type.upper()} support: the CPU makes and searches inverted lists",
                where=f"device {device}",
                remedy="use cpu to leave this warning out",
            )
        )


def numbered(device: torch.device) -> torch.device:
    """Return the device with its number; the CPU has none.

    >>> numbered(torch.device("cpu"))
    device(type='cpu')
    """
    if device.index is not None or device.type not in ACCELERATORS:
        return device
    return torch.device(device.type, ACCELERATORS[device.type].current())


def float64_device(device: torch.device | str) -> torch.device:
    """Return the device that holds float64 tensors for a device: the CPU where the device has no float64.

    >>> float64_device("cpu")
    device(type='cpu')
    """
    device = torch.device(device)
    return device if _has_float64(device) else torch.device("cpu")


def _has_float64(device: torch.device) -> bool:
    kind = ACCELERATORS.get(device.type)
    return kind is None or kind.has_float64(device)


def to_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on the `float64_device` of its device."""
    # In two steps: no copy changes device and type where the device has no float64.
    return tensor.double() if _has_float64(tensor.device) else tensor.cpu().double()


def in_float64(numbers: Any) -> Tensor:
    """Return numbers, as a tensor on any device or as `torch.as_tensor` takes them, in float64 on the CPU."""
    if isinstance(numbers, Tensor):
        numbers = numbers.cpu()
    return torch.as_tensor(numbers, dtype=torch.float64)


def check_dtype(device: torch.device, dtype: torch.dtype) -> None:
    """Refuse float64 on a device that has no float64.

    Raises
    ------
    DeviceError
    """
    if dtype == torch.float64 and float64_device(device) != device:
        raise DeviceError(
            "the device has no float64",
            where=f"device {device}",
            remedy=["use float32 (its sums are float64, on the CPU), or ", Option("device", "cpu")],
        )


def free_bytes(device: torch.device) -> int:
    """Return the bytes that new tensors on a device may take; 0 on the CPU, where memory is not asked for."""
    return ACCELERATORS[device.type].free_bytes(device) if device.type in ACCELERATORS else 0


def memory_budget(devices: Sequence[torch.device], given: int | None, default: int) -> int:
    """Return the bytes that a call may use on each of the devices.

    Parameters
    ----------
    devices : sequence of torch.device
    given : int or None
        The user's budget. On a GPU the budget is 0.4 of the free memory, or the user's budget if the
        user's budget is smaller.
    default : int
        The budget on the CPU, where the user gives none.
    """
    free = [int(SHARE * free_bytes(device)) for device in devices if device.type in ACCELERATORS]
    if not free:
        return default if given is None else given
    return max(1, min(free if given is None else [*free, given]))


OUT_OF_MEMORY = re.compile(r"MPS backend out of memory|Invalid buffer size")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch says that a device has not enough memory; MPS has no type of error for that."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and OUT_OF_MEMORY.match(str(error)) is not None
    )


def out_of_memory(error: BaseException) -> str:
    """Return torch's report of a failed allocation on a device without its advice, in one sentence."""
    text = " ".join(str(error).split())
    tried = re.search(r"(?:[Tt]ried to allocate|Invalid buffer size:) ([\d.]+ \w+)", text)
    free = re.search(r"of which ([\d.]+ \w+) is free", text)
    if tried is None:
        return text.split(". ")[0]
    return f"an array of {tried[1]} does not fit" + (f" into {free[1]}" if free else "")


@contextmanager
def enough_memory(device: torch.device, *remedy: str | Option) -> Iterator[None]:
    """Turn torch's error for lack of memory on a device into a PatchIndexError of one line."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # Of several devices, perhaps not the first.
        full = re.search(r"(CUDA|XPU) out of memory.*GPU (\d+) has", str(error), re.DOTALL)
        where = f"device {full[1].lower()}:{full[2]}" if full else f"device {device}"
        raise PatchIndexError(
            f"not enough memory: {out_of_memory(error)}", where=where, remedy=remedy
        ) from error
