"""Pipelines of the library diffusers, from a local folder; the library comes with the extra `diffusers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchindex.errors import InputError
from patchindex.networks.conversions import NoiseTable
from patchindex.networks.network import Network
from patchindex.runtime import resolve_device

__all__ = ["is_diffusers_folder", "open_diffusers"]

PIPELINE, MODEL, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
MOST_STEPS = 100_000  # the scheduler makes several arrays of this length; 1000 are common
PREDICTS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}


def is_diffusers_folder(path: Path) -> bool:
    """Return whether a folder holds a pipeline or a model of diffusers."""
    return (path / PIPELINE).is_file() or (path / MODEL).is_file()


def open_diffusers(
    folder: Path,
    *,
    label: int | None = None,
    device: str | torch.device | None = None,
    threads: int | None = None,
) -> Network:
    """Open the `UNet2DModel` of a pipeline, with the noise schedule and the prediction type of its scheduler.

    Step i of n of the scheduler has the time t = (i + 1) / n and the noise variance `1 - alphas_cumprod[i]`.

    Raises
    ------
    InputError
        When diffusers is not installed; when the folder has another model, no scheduler, or no weights in
        safetensors files.
    """
    if not (folder / PIPELINE).is_file():
        raise _refused(
            folder,
            "is a model without the noise schedule of its scheduler",
            "give the folder of the pipeline, or wrap the model by patchindex.networks.wrap with schedule=",
        )
    parts = _read_json(folder / PIPELINE)
    if parts.get("unet") != ["diffusers", "UNet2DModel"] or not isinstance(parts.get("scheduler"), list):
        raise _refused(
            folder,
            f"is not a pipeline of a UNet2DModel and a scheduler, but a {parts.get('_class_name')}",
            "wrap its model by patchindex.networks.wrap",
        )
    steps = _read_json(folder / "scheduler" / SCHEDULER).get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or not 1 <= steps <= MOST_STEPS:
        raise _refused(folder / "scheduler", f"has {steps!r:.40} time steps", "copy the folder again")
    model, scheduler = _load(folder)
    config = model.config
    prediction = scheduler.config.prediction_type
    size = config.sample_size
    height, width = (size, size) if isinstance(size, int) else size or (0, 0)
    if prediction not in PREDICTS:
        raise _refused(folder, f"has the unknown prediction type {prediction!r}", "wrap the model yourself")
    if not height or config.out_channels != config.in_channels:
        raise _refused(
            folder,
            f"has sample_size {size}, {config.in_channels} input and {config.out_channels} output channels",
            "wrap the model by patchindex.networks.wrap",
        )
    if config.class_embed_type is not None:
        raise _refused(
            folder,
            f"has class embeddings of type {config.class_embed_type!r}",
            "wrap the model by patchindex.networks.wrap",
        )
    found = resolve_device(device)
    model = model.to(found).eval()

    def predict(x: Tensor, step: Tensor, label: Tensor | None = None) -> Tensor:
        predicted: Tensor = model(x, step, class_labels=label, return_dict=False)[0]
        return predicted

    return Network(
        predict, (config.in_channels, height, width), predicts=PREDICTS[prediction], time="index",
        schedule=NoiseTable(1 - scheduler.alphas_cumprod.double()),
        labels=None if config.num_class_embeds is None else range(config.num_class_embeds),
        label=label, name=str(folder), device=found, threads=threads,
    )  # fmt: skip


def _load(folder: Path) -> tuple[Any, Any]:
    """Return the model and the scheduler of a pipeline, from local files and safetensors only."""
    try:
        from diffusers import DDPMScheduler, UNet2DModel
    except ImportError:
        raise InputError(
            "diffusers is not installed", where=folder, remedy="pip install 'patchindex[diffusers]'"
        ) from None
    if not any((folder / "unet").glob("*.safetensors")):
        raise _refused(
            folder / "unet",
            "has no weights in safetensors files",
            "in your own code, save the pipeline by save_pretrained(folder, safe_serialization=True)",
        )
    try:
        model, report = UNet2DModel.from_pretrained(
            folder / "unet", use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    except (OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
        line = " ".join(str(error).split())[:200]
        raise _refused(folder, f"diffusers cannot load it ({line})", "copy the folder again") from None
    # diffusers draws weights at random where the files have none.
    if missing := sorted(report["missing_keys"]):
        what = f"its files lack {len(missing)} weights of config.json, {missing[0]} first"
        raise _refused(folder / "unet", what, "copy the folder again")
    return model, scheduler


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise _refused(path, f"cannot be read as JSON ({error})", "copy the file again") from None
    return content if isinstance(content, dict) else {}


def _refused(where: Path, what: str, remedy: str) -> InputError:
    return InputError(what, where=where, remedy=remedy)
