"""A GPU that is the CPU: tensors that say they are on `cuda:0`, and errors where devices are mixed.

Inside `FakeGPU`, `tensor.device` is the device that a GPU's tensor would have, and an operation on tensors of
two devices raises, as on a real GPU. The numbers are computed on the CPU. Other threads see CPU tensors.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)


class FakeGPU(TorchFunctionMode):
    """A block in which `cuda` names the fake GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if func == torch.Tensor.device.__get__:
            return _device(args[0])
        if name == "to":
            return _moved(func, args, kwargs)
        if name == "cpu":
            return _on(args[0].clone(), CPU)
        if name in ("numpy", "__array__") and _device(args[0]) == GPU:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if kwargs.get("device") is not None:
            device = _named(kwargs.pop("device"))
        else:
            device = _common(func, name, args, kwargs)
        found = func(*args, **kwargs)
        for tensor in _tensors(found):
            _on(tensor, device)
        return found


def install(monkeypatch: Any, free: int) -> None:
    """Let the package find the fake GPU, with so many free bytes for a copy of the training images."""
    from patchindex import devices
    from patchindex.exact import choice, fused, fused_device
    from patchindex.images import on_device

    settings = fused_device.settings_of(CPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    monkeypatch.setattr(devices, "free_bytes", lambda device: 1 << 30)
    monkeypatch.setattr(on_device, "free_bytes", lambda device: free if device.type == "cuda" else 0)
    monkeypatch.setattr(choice, "check_device", lambda device: None)
    monkeypatch.setattr(fused, "settings_of", lambda device: settings)


def _device(tensor: torch.Tensor) -> torch.device:
    return tensor.__dict__.get("of_fake_gpu", CPU)


def _on(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    tensor.of_fake_gpu = device  # type: ignore[attr-defined]
    return tensor


def _named(device: Any) -> torch.device:
    return GPU if torch.device(device).type == "cuda" else CPU


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def _moved(func: Any, args: Any, kwargs: Any) -> torch.Tensor:
    """Convert a tensor by `Tensor.to`, and note the device."""
    tensor, device, rest = args[0], _device(args[0]), []
    kwargs.pop("non_blocking", None)
    for wanted in (*args[1:], *filter(None, [kwargs.pop("device", None)])):
        if isinstance(wanted, torch.Tensor):
            device = _device(wanted)
            rest.append(wanted.dtype)
        elif isinstance(wanted, str | torch.device):
            device = _named(wanted)
        else:
            rest.append(wanted)
    found = func(tensor, *(rest or [tensor.dtype]), **kwargs)
    if found is tensor and device != _device(tensor):
        found = tensor.clone()
    return _on(found, device)


def _common(func: Any, name: str, args: Any, kwargs: Any) -> torch.device:
    """Return the device of an operation's result; refuse tensors of two devices, as torch does."""
    tensors = _tensors((args, kwargs))
    devices = {_device(tensor) for tensor in tensors if tensor.dim()}
    if len(devices) == 2 and name != "copy_":
        # Indices of a GPU's tensor may be on the CPU.
        values = {_device(value) for value in _tensors(args[2:]) if value.dim()}
        if func not in INDEXING or _device(args[0]) == CPU or CPU in values:
            raise RuntimeError(f"Expected all tensors to be on the same device: {name}")
    if func in INDEXING:
        return _device(args[0])
    return GPU if any(_device(tensor) == GPU for tensor in tensors) else CPU
