"""The choice of an exact engine for a request."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch

from patchindex.checks import is_name_in
from patchindex.errors import DeviceError, InputError, Option, PatchIndexWarning, warn
from patchindex.exact import cpu, offsets, whole_images
from patchindex.exact.fused import Fused
from patchindex.exact.fused_device import INSTALLED, Triton, check_device
from patchindex.exact.request import ScoreRequest
from patchindex.geometry import Geometry
from patchindex.softmax import SoftmaxState

__all__ = ["ENGINES", "Engine", "check_engine", "engine_of", "fastest"]


class Engine(Protocol):
    """The functions of an engine: a module, or an object."""

    def query_bytes(self, geometry: Geometry, channels: int) -> int:
        """Return the bytes of one noisy image's sums and states, with copies."""
        ...

    def scan_parts(self, request: ScoreRequest, bounds: Sequence[int]) -> SoftmaxState:
        """Return the states of parts of the request's images, of shape (P, B, H, W).

        Part i has the images `bounds[i]` to `bounds[i + 1] - 1`, counted from the start of the image range.
        """
        ...


ENGINES: dict[str, Engine] = {"cpu": cpu, "fused": Fused(), "offsets": offsets}


def engine_of(request: ScoreRequest) -> Engine:
    """Return the engine that the request names, or the fastest engine that can run the request.

    Raises
    ------
    InputError, DeviceError
        As from `check_engine`.
    """
    device, dtype = request.x.device, request.dtype
    if request.engine is not None:
        check_engine(request.engine, device, dtype)
    if request.geometry.machine == "IS":
        return whole_images
    if request.engine is not None:
        return ENGINES[request.engine]
    return ENGINES[fastest(device, dtype)]


def fastest(device: torch.device, dtype: torch.dtype, triton: Triton = INSTALLED) -> str:
    """Return the name of the fastest engine that can compute in a dtype on a device.

    A warning says why `fused` does not run on a GPU in float32.
    """
    if dtype != torch.float32:
        return "offsets"
    if device.type == "cpu":
        return "cpu"
    try:
        check_device(device, triton)
    except DeviceError as error:
        _warn_of_slow_scans(device, error.what)
        return "offsets"
    return "fused"


@lru_cache
def _warn_of_slow_scans(device: torch.device, reason: str) -> None:
    """Warn once for each device and reason."""
    warn(
        PatchIndexWarning(
            f"exact scans take the slower engine 'offsets', because {reason}",
            where=f"device {device}",
            remedy=["give ", Option("engine", "offsets"), " to the estimator to leave this warning out"],
        )
    )


def check_engine(
    name: str, device: torch.device, dtype: torch.dtype = torch.float32, triton: Triton = INSTALLED
) -> None:
    """Refuse an engine that is unknown, or that cannot compute in a dtype on a device.

    Raises
    ------
    InputError
        When the name is unknown, or the engine has no such dtype or device.
    DeviceError
        When `fused` needs another device, or Triton.
    """
    if not is_name_in(name, ENGINES):
        raise InputError(
            f"unknown engine {name!r}", parameter="engine", remedy=f"use one of {', '.join(ENGINES)}"
        )
    if name == "cpu" and device.type != "cpu":
        raise InputError(
            f"'cpu' does not run on {device}", parameter="engine", remedy="leave it out, or use 'offsets'"
        )
    if name != "offsets" and dtype != torch.float32:
        raise InputError(
            f"{name!r} computes in float32 only", parameter="engine", remedy="leave it out, or use 'offsets'"
        )
    if name == "fused":
        check_device(device, triton)
