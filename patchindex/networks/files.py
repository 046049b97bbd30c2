"""The files of a training run: weights, the state of the optimiser, settings and losses.

    weights.safetensors   the weights to use; the settings of the run are in the file's header
    run.json              the same settings, for people and other programs
    state.safetensors     weights, moving average and optimiser, to resume from; the numbers of the run are in
                          the file's header
    loss.csv, loss.png    the loss by step

Each file is replaced at once, and each reader reads one file only, so that a kill between two files never
mixes two states: `open_run` reads `weights.safetensors`, and a resumed run reads `state.safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from patchindex.errors import InputError
from patchindex.regular_files import open_regular
from patchindex.store.atomic import atomic_write

__all__ = [
    "FILES",
    "LOSSES",
    "PICTURE",
    "RUN",
    "STATE",
    "WEIGHTS",
    "TensorFile",
    "read_header",
    "write_tensors",
]

FORMAT = 1
WEIGHTS, STATE, RUN = "weights.safetensors", "state.safetensors", "run.json"
LOSSES, PICTURE = "loss.csv", "loss.png"
LOCK = "train.lock"  # held by the process that trains
FILES = (WEIGHTS, STATE, RUN, LOSSES, PICTURE)
AGAIN = "copy the file again, or train again"
HEADER = "patchindex"  # the key of the JSON data in the metadata of a safetensors file
DTYPES = {torch.float32: ("F32", "F16"), torch.int64: ("I64",)}  # of tensors that a network or its state has


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Any) -> None:
    """Write tensors and JSON data to a safetensors file, atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(contiguous, {HEADER: json.dumps(header)})
    with atomic_write(path) as file:
        file.write(content)


def read_header(path: Path, remedy: str) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, str]]:
    """Return the dtype and shape of each tensor of a safetensors file, and its metadata; reads no tensor.

    The library compares the sizes of the tensors with the size of the file. Raises InputError with `remedy`
    for any other file.
    """
    try:
        open_regular(path, follow_links=True).close()
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
            return found, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"is not a safetensors file ({error})", where=path, remedy=remedy) from None


class TensorFile:
    """A safetensors file that is checked before its tensors are read.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    header : dict
        The JSON data of the file.

    Raises
    ------
    InputError
        When there is no such file, or its header was not written by a training run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise InputError("no such file", where=path, remedy="give the folder of a training run")
        self._found, metadata = read_header(path, AGAIN)
        try:
            header = json.loads(metadata.get(HEADER, ""))
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict):
            raise self._refused("has no settings of a training run")
        self.header: dict[str, Any] = header

    def read(self, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors with the names and dtypes of `expected`; float16 is converted to float32.

        Raises
        ------
        InputError
            When a name, shape or dtype differs from `expected`, or a value is not finite.
        """
        self._compare(expected)
        with safe_open(self.path, "pt") as file:
            tensors = {name: file.get_tensor(name).to(tensor.dtype) for name, tensor in expected.items()}
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise self._refused(f"tensor {name} has values that are not finite")
        return tensors

    def _compare(self, expected: Mapping[str, Tensor]) -> None:
        """Compare names, dtypes and shapes before any tensor is read."""
        missing, surplus = expected.keys() - self._found.keys(), self._found.keys() - expected.keys()
        for names, what in ((missing, "lacks"), (surplus, "has an unknown")):
            if names:
                raise self._refused(f"{what} tensor {_first(names)}")
        for name, tensor in expected.items():
            dtype, shape = self._found[name]
            if shape != tuple(tensor.shape):
                raise self._refused(
                    f"tensor {name} has shape {shape}, but the architecture has {tuple(tensor.shape)}"
                )
            if dtype not in DTYPES[tensor.dtype]:
                known = " or ".join(DTYPES[tensor.dtype])
                raise self._refused(f"tensor {name} has dtype {dtype}, expected {known}")

    def _refused(self, what: str) -> InputError:
        return InputError(what, where=self.path, remedy=AGAIN)


def _first(names: Iterable[str]) -> str:
    return min(names)
