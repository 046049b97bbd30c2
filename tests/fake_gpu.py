"""A device that is the CPU: tensors that say they are on `cuda:0` or `mps:0`, and a device's errors.

Inside `FakeGPU`, `tensor.device` is the device that a GPU's tensor would have. An operation on tensors of two
devices raises, as on a real GPU, and so does a float64 tensor on a device without float64. The numbers are
computed on the CPU. Other threads see CPU tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from patchindex.devices import ACCELERATORS, Accelerator

CPU = torch.device("cpu")
INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
WIDE = (torch.float64, torch.complex128)
NO_FLOAT64 = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."


class Fake(Accelerator):
    """Devices with so many free bytes each, whose pinned memory is any memory."""

    def __init__(
        self,
        free: list[int],
        *,
        float64: bool = True,
        pins_memory: bool = True,
        capability: tuple[int, int] = (9, 0),
    ) -> None:
        super().__init__(None)
        self.free, self.float64, self.pins_memory = free, float64, pins_memory
        self.given_capability = capability

    def count(self) -> int:
        return len(self.free)

    def current(self) -> int:
        return 0

    def free_bytes(self, device: torch.device) -> int:
        return self.free[device.index or 0]

    def has_float64(self, device: torch.device) -> bool:
        return self.float64

    def capability(self, device: torch.device) -> tuple[int, int] | None:
        return self.given_capability

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()


def install(monkeypatch: Any, kind: str = "cuda", *, free: int = 1 << 30, float64: bool = True) -> FakeGPU:
    """Let the package find a fake device of a type, with so many free bytes; return the block to use it."""
    monkeypatch.setitem(ACCELERATORS, kind, Fake([free], float64=float64, pins_memory=kind == "cuda"))
    return FakeGPU(kind, float64)


class FakeGPU(TorchFunctionMode):
    """A block in which `cuda`, or another type of device, names the fake device."""

    def __init__(self, kind: str = "cuda", float64: bool = True) -> None:
        super().__init__()
        self.device, self.float64 = torch.device(kind, 0), float64

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if func == torch.Tensor.device.__get__:
            return _device(args[0])
        if name == "to":
            return self._moved(func, args, kwargs)
        if name == "cpu":
            return self._on(args[0].clone(), CPU)
        if name in ("numpy", "__array__") and _device(args[0]) != CPU and not kwargs.get("force"):
            raise TypeError(f"can't convert {self.device} device type tensor to numpy")
        if kwargs.get("device") is not None:
            device = self._named(kwargs.pop("device"))
        else:
            device = _common(func, name, args, kwargs)
        found = func(*args, **kwargs)
        for tensor in _tensors(found):
            self._on(tensor, device)
        return found

    def _on(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        self._check(tensor.dtype, device)
        tensor.of_fake_gpu = device  # type: ignore[attr-defined]
        return tensor

    def _check(self, dtype: torch.dtype, device: torch.device) -> None:
        if device != CPU and dtype in WIDE and not self.float64:
            raise TypeError(NO_FLOAT64)

    def _named(self, device: Any) -> torch.device:
        return self.device if torch.device(device).type == self.device.type else CPU

    def _moved(self, func: Any, args: Any, kwargs: Any) -> torch.Tensor:
        """Convert a tensor by `Tensor.to`, and note the device."""
        tensor, device, rest = args[0], _device(args[0]), []
        kwargs.pop("non_blocking", None)
        for wanted in (*args[1:], *filter(None, [kwargs.pop("device", None)])):
            if isinstance(wanted, torch.Tensor):
                device = _device(wanted)
                rest.append(wanted.dtype)
            elif isinstance(wanted, str | torch.device):
                device = self._named(wanted)
            else:
                self._check(wanted, _device(tensor))  # a conversion is on the first device
                rest.append(wanted)
        found = func(tensor, *(rest or [tensor.dtype]), **kwargs)
        if found is tensor and device != _device(tensor):
            found = tensor.clone()
        return self._on(found, device)


def _device(tensor: torch.Tensor) -> torch.device:
    return tensor.__dict__.get("of_fake_gpu", CPU)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


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
    return next((_device(tensor) for tensor in tensors if _device(tensor) != CPU), CPU)
