"""Trained networks on disk: `open_run` for a run folder, `open_network` for any known folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchindex.checks import is_real, is_whole
from patchindex.devices import resolve_devices
from patchindex.errors import InputError, SourceNotFoundError
from patchindex.networks.architectures import ResNet, UNet, make_network
from patchindex.networks.diffusers_folder import is_diffusers_folder, open_diffusers
from patchindex.networks.files import FORMAT, WEIGHTS, TensorFile
from patchindex.networks.network import LARGEST_SIDE, Network
from patchindex.networks.provenance import ImagesRecord
from patchindex.runtime import plain_state
from patchindex.schedules import NOISE_SCHEDULES

__all__ = ["open_network", "open_run"]

PICKLED = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
NUMBERS = ("parameters", "step", "epochs", "seconds", "cpu_seconds", "loss", "validation_loss")


@plain_state()
def open_run(
    run: str | os.PathLike[str],
    *,
    label: int | None = None,
    device: str | torch.device | None = None,
    threads: int | None = None,
) -> Network:
    """Open the network of a run folder, or of its file `weights.safetensors` alone.

    The settings, and the names, shapes and dtypes of all tensors, are checked before any weight is read.

    Parameters
    ----------
    run : path
        A folder that `train` wrote, or the file `weights.safetensors` under any name.
    label : int, optional
        The label of calls without a label.
    device : str or torch.device, optional
        The default is the CPU.
    threads : int, optional
        Number of CPU threads. The default is the number that torch uses.

    Returns
    -------
    Network
        A denoiser with the shape, the labels and the noise schedule of the run.

    Raises
    ------
    InputError
        When the file is missing or damaged, or its settings and tensors do not fit each other.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from patchindex.networks import TrainSettings, train
    >>> images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    >>> settings = TrainSettings(options={"channels": 16, "layers": 1}, steps=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     record = train(images, folder, settings)
    ...     network = open_run(folder)
    >>> network.posterior_mean(torch.randn(2, 1, 8, 8), 0.5).mean.shape
    torch.Size([2, 1, 8, 8])
    """
    path = Path(run)
    file = TensorFile(path if path.is_file() else path / WEIGHTS)
    record = _Record(file.header, file.path)
    found = resolve_devices(device)[0]
    with torch.device("meta"):  # no memory, whatever sizes the settings have
        expected = record.network().state_dict()
    weights = file.read(expected)
    network = record.network()
    network.load_state_dict(weights, strict=True)
    network.eval().to(found, memory_format=torch.channels_last)  # type: ignore[call-overload]
    labels = record.labels

    def predict(x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        position = None
        if label is not None and labels is not None:
            position = torch.searchsorted(torch.tensor(labels, device=label.device), label)
        predicted: Tensor = network(x, t, position)
        return predicted

    return Network(
        predict, record.shape, schedule=record.noise, labels=labels, label_names=record.label_names,
        label=label, name=str(path), device=found, threads=threads, images=record.images, run=file.header,
    )  # fmt: skip


@plain_state()
def open_network(
    path: str | os.PathLike[str],
    *,
    label: int | None = None,
    device: str | torch.device | None = None,
    threads: int | None = None,
) -> Network:
    """Open a trained network: a run folder, or a folder of a diffusers pipeline.

    Parameters
    ----------
    path : path
        A run folder of `train`, its file `weights.safetensors`, or a local folder that
        `DDPMPipeline.save_pretrained` wrote (needs the extra `diffusers`). Weights are read from safetensors
        files only: a pickled file can run any code.
    label, device, threads : optional
        As for `open_run`.

    Returns
    -------
    Network

    Raises
    ------
    SourceNotFoundError
        When there is nothing at the path.
    InputError
        When the file or folder is damaged, or is no network of a known kind.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from patchindex.networks import TrainSettings, train
    >>> images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    >>> settings = TrainSettings(options={"channels": 16, "layers": 1}, steps=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     record = train(images, folder, settings)
    ...     open_network(folder).shape
    (1, 8, 8)
    """
    where = Path(path)
    if where.suffix.lower() in PICKLED:
        raise InputError(
            "is a pickled file, which can run any code and is never opened",
            where=where,
            remedy="in your own code, load it by torch.load(file, weights_only=True), and give the model to "
            "patchindex.networks.wrap",
        )
    if not where.exists():
        raise SourceNotFoundError(
            "no such file or folder",
            where=where,
            remedy="give a run folder of `train`, or a diffusers folder",
        )
    if is_diffusers_folder(where):
        return open_diffusers(where, label=label, device=device, threads=threads)
    if where.is_dir() and not (where / WEIGHTS).exists():
        raise InputError(
            f"has neither {WEIGHTS} nor the files of a diffusers pipeline",
            where=where,
            remedy="give a run folder of `train`, or a folder that DDPMPipeline.save_pretrained wrote",
        )
    return open_run(where, label=label, device=device, threads=threads)


class _Record:
    """The settings in the header of a file of weights, checked."""

    def __init__(self, header: dict[str, Any], where: Path) -> None:
        self._where = where
        if header.get("format") != FORMAT:
            raise InputError(
                f"has format {header.get('format')!r}; this version reads {FORMAT}",
                where=where,
                remedy="use the version of patchindex that wrote it",
            )

        def take(name: str, check: Callable[[Any], bool], expected: str, source: Any = header) -> Any:
            value = source.get(name)
            if not check(value):
                raise self._damaged(f"{name} is {value!r:.80}, expected {expected}")
            return value

        architecture = take("architecture", lambda v: isinstance(v, dict), "an object")
        self.arch: str = take("name", lambda v: isinstance(v, str), "a name", architecture)
        self.options = {name: value for name, value in architecture.items() if name != "name"}
        shape = take("shape", _is_shape, "three sizes of an image")
        self.shape: tuple[int, int, int] = (shape[0], shape[1], shape[2])
        self.labels: list[int] | None = take("labels", _are_labels, "ascending integers, or null")
        self.label_names: list[str] | None = take("label_names", _are_names, "names, or null")
        self.noise: str = take(
            "noise", lambda v: isinstance(v, str) and v in NOISE_SCHEDULES, "a noise schedule"
        )
        images = take("images", lambda v: isinstance(v, dict), "an object")
        self.images = ImagesRecord(
            take("source", lambda v: isinstance(v, str), "a name", images),
            take("count", lambda v: _is_integer(v, 1), "a number of images", images),
            take("fingerprint", lambda v: isinstance(v, str), "a fingerprint", images),
            take("labels", lambda v: v is None or isinstance(v, str), "a fingerprint, or null", images),
        )

        for name in NUMBERS:
            take(name, _is_number_or_none, "a number, or null")

    def network(self) -> ResNet | UNet:
        """Return the network of these settings, untrained."""
        try:
            return make_network(self.arch, self.shape, len(self.labels or ()), self.options)
        except InputError as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, what: str) -> InputError:
        return InputError(
            f"has wrong settings ({what})", where=self._where, remedy="copy the file again, or train again"
        )


def _is_integer(value: Any, least: int, most: float = float("inf")) -> bool:
    return is_whole(value) and least <= value <= most


def _is_number_or_none(value: Any) -> bool:
    return value is None or is_real(value)


def _is_shape(value: Any) -> bool:
    sizes = (
        isinstance(value, list) and len(value) == 3 and all(_is_integer(v, 1, LARGEST_SIDE) for v in value)
    )
    return sizes and value[0] in (1, 3)


def _are_labels(value: Any) -> bool:
    if value is None:
        return True
    integers = isinstance(value, list) and value and all(_is_integer(v, -(2**63), 2**63 - 1) for v in value)
    return bool(integers) and value == sorted(set(value))


def _are_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))
