"""The devices of the fused kernel: which of them can run the kernel, and with which settings."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch

from patchindex.devices import ACCELERATORS
from patchindex.errors import DeviceError
from patchindex.exact.window_tables import MOST_HELD, Layout

__all__ = ["INSTALLED", "Settings", "Triton", "check_device", "interpreted", "settings_of"]

log = logging.getLogger(__name__)

TRITON = (3, 2)  # the oldest version: Triton 3.0 takes 30 KiB more of shared memory for a program
CAPABILITY = (8, 0)  # of the oldest GPU that Triton supports
# Bytes of shared memory in a program of 128 rows: for each number of windows that it holds, in two stages and
# in one stage, and beside these windows; and of a program that streams windows in three stages.
# `tests/exact/test_fused_compile.py` compares them with what the compiler says.
HELD_BYTES, HELD_BYTES_ONCE, COLUMN_BYTES, STREAMED_BYTES = 768, 640, 1024, 144 << 10
RESERVED_BYTES = 1 << 10  # in each program, by CUDA
LARGE_GPU = 227 << 10  # bytes of shared memory in a program on an H100
COLUMNS = 1 << 15
WAVES = 8  # programs that run one after the other: with many, few multiprocessors wait for the last
OPTIONS = {"enable_fp_fusion": True}  # Triton warns unless the choice is made


def interpreted() -> bool:
    """Return whether Triton interprets kernels in NumPy, whatever device their tensors are on."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class Triton:
    """The installed Triton."""

    def version(self) -> tuple[int, int] | None:
        """Return the version, or None when Triton is not installed."""
        if find_spec("triton") is None:
            return None
        import triton

        major, minor = triton.__version__.split(".")[:2]
        return int(major), int(minor)

    def driver_error(self) -> str | None:
        """Return why Triton cannot use the GPU: for example, it needs a C compiler at the first use."""
        return _driver_error()


INSTALLED = Triton()


def check_device(device: torch.device, triton: Triton = INSTALLED) -> None:
    """Raise DeviceError where the fused kernel cannot run by a Triton."""
    remedy = "leave the engine out, or use 'offsets'"

    def refuse(what: str, remedy: str = remedy) -> None:
        raise DeviceError(f"the engine 'fused' needs {what}", where=f"device {device}", remedy=remedy)

    version = triton.version()
    if version is None:
        refuse("Triton, which is not installed", f"pip install triton; or {remedy}")
    elif version < TRITON:
        found = f"this is {_dotted(version)}"
        refuse(f"Triton {_dotted(TRITON)}, {found}", f"install a torch that comes with it; or {remedy}")
    if interpreted() and device.type in ("cpu", "cuda"):
        return
    if device.type != "cuda":
        refuse("a CUDA device", f"{remedy}; for tests, set TRITON_INTERPRET=1 to run it slowly on a CPU")
    capability = ACCELERATORS["cuda"].capability(device)
    if capability is None:
        refuse("an NVIDIA GPU")
    elif capability < CAPABILITY:
        mine = _dotted(capability)
        refuse(f"a GPU of compute capability {_dotted(CAPABILITY)}, this one has {mine}")
    if (error := triton.driver_error()) is not None:
        refuse(f"Triton, which does not work here: {error}")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


@lru_cache(maxsize=1)
def _driver_error() -> str | None:
    from triton.runtime import driver

    try:
        _ = driver.active.utils
    except Exception as error:
        log.info("Triton does not work", exc_info=True)
        return str(error)
    return None


@dataclass(frozen=True)
class Settings:
    """Settings of the kernel for a device, which change results by rounding only.

    They were chosen by the registers and the shared memory that a program takes, and not by measurement. Two
    programs of 256 threads run at once, and fill each other's waits, where each takes at most 128 registers
    and half of the shared memory.
    """

    programs: int  # that the device should have, to be busy
    shared: int  # bytes of shared memory in a program
    unfolded: int = 32  # training windows that a program writes
    # Training windows that a program compares: those of whole images, and of one image at least.
    columns: int = COLUMNS

    @property
    def most_held(self) -> int:
        """Numbers of the longest window that a program holds."""
        return min(MOST_HELD, (self.shared - COLUMN_BYTES) // HELD_BYTES)

    def of_program(self, rows: int, layout: Layout) -> dict[str, Any]:
        """Return the settings of a program of 16 or 128 rows."""
        if rows == 16:
            return OPTIONS | {"BN": 64, "num_warps": 4, "num_stages": 2}
        if not layout.held:
            stages = 3 if self.shared >= STREAMED_BYTES else 2
            return OPTIONS | {"BN": 128, "num_warps": 8, "num_stages": stages}
        numbers, half = layout.first + layout.rest, self.shared // 2 - RESERVED_BYTES - COLUMN_BYTES
        for stages, each in ((2, HELD_BYTES), (1, HELD_BYTES_ONCE)):
            if each * numbers <= half:
                return OPTIONS | {"BN": 64, "num_warps": 8, "num_stages": stages, "maxnreg": 128}
        return OPTIONS | {"BN": 64, "num_warps": 8, "num_stages": 2}


def settings_of(device: torch.device) -> Settings:
    """Return the settings for a device; where Triton interprets the kernel, about an H100's."""
    if interpreted() or device.type != "cuda":
        return Settings(1, LARGE_GPU, 1024)
    from triton.runtime import driver

    processors = torch.cuda.get_device_properties(device).multi_processor_count
    index = torch.cuda.current_device() if device.index is None else device.index
    shared = driver.active.utils.get_device_properties(index)["max_shared_mem"]
    return Settings(2 * processors * WAVES, shared)
