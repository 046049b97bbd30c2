"""Devices that compute: lists of devices, the memory that a device has, and errors for lack of memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from patchindex.errors import DeviceError, Option, PatchIndexError
from patchindex.runtime import resolve_device

__all__ = ["enough_memory", "free_bytes", "memory_budget", "out_of_memory", "resolve_devices"]

ALL = "cuda:all"
# A copy of the training images takes half of the free memory at most (`patchindex.images.on_device`). The
# rest is for libraries and kernels, and for gaps between the blocks of torch's allocator.
SHARE = 0.4  # of the free memory: temporary arrays


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
    patchindex.errors.DeviceError: device: unknown device 'tpu'; use cpu or cuda
    """
    if device == ALL:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        device = ",".join(f"cuda:{i}" for i in range(count)) or "cuda"
    if not isinstance(device, str) or "," not in device:
        return (resolve_device(device),)
    found = tuple(resolve_device(name.strip()) for name in device.split(","))
    numbers = [0 if one.index is None else one.index for one in found if one.type == "cuda"]
    if len({*numbers}) < len(numbers):
        raise DeviceError(f"{device!r} names a GPU twice", parameter="device", remedy="name each GPU once")
    return found


def free_bytes(device: torch.device) -> int:
    """Return the bytes that new tensors on a device may take; 0 on the CPU, where memory is not asked for."""
    if device.type != "cuda":
        return 0
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + cached)


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
    free = [int(SHARE * free_bytes(device)) for device in devices if device.type == "cuda"]
    if not free:
        return default if given is None else given
    return max(1, min(free if given is None else [*free, given]))


def out_of_memory(error: Exception) -> str:
    """Return torch's report of a failed allocation on a GPU without its advice, in one sentence."""
    text = " ".join(str(error).split())
    tried = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
    free = re.search(r"of which ([\d.]+ \w+) is free", text)
    if tried is None:
        return text.split(". ")[0]
    return f"an array of {tried[1]} does not fit" + (f" into {free[1]}" if free else "")


@contextmanager
def enough_memory(device: torch.device, *remedy: str | Option) -> Iterator[None]:
    """Turn torch's error for lack of memory on a GPU into a PatchIndexError of one line."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        full = re.search(r"GPU (\d+) has", str(error))  # of several devices, perhaps not the first
        where = f"device cuda:{full[1]}" if full else f"device {device}"
        raise PatchIndexError(
            f"not enough memory: {out_of_memory(error)}", where=where, remedy=remedy
        ) from error
