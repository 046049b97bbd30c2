"""Pipelines of the library diffusers, from a local folder; the library comes with the extra `diffusers`."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchindex.checks import is_name_in, is_whole
from patchindex.devices import resolve_devices
from patchindex.errors import InputError, PatchIndexError
from patchindex.networks.conversions import NoiseTable
from patchindex.networks.files import read_header
from patchindex.networks.network import LARGEST_SIDE, Network
from patchindex.regular_files import read_regular

__all__ = ["is_diffusers_folder", "open_diffusers"]

PIPELINE, MODEL, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
MOST_STEPS = 100_000  # the scheduler makes several arrays of this length; 1000 are common
MOST_JSON = 1 << 22  # bytes: the list of the tensors of a large model takes less
# What diffusers and torch raise for settings of another type or size than they expect.
BAD_CONFIG = (
    OSError, ValueError, TypeError, RuntimeError, LookupError, ArithmeticError, AttributeError, NameError
)  # fmt: skip
AGAIN = "copy the folder again"
WRAP = "wrap the model by patchindex.networks.wrap"
# These schedulers compute noise variances from their settings as DDPMScheduler does.
SCHEDULERS = frozenset({
    "DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler",
    "DDPMParallelScheduler", "DDPMScheduler",
    "DEISMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler",
    "UniPCMultistepScheduler",
})  # fmt: skip
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
        When diffusers is not installed; when the folder has another model, no scheduler with the noise of
        DDPM, or no weights in safetensors files.
    """
    if not (folder / PIPELINE).is_file():
        raise _refused(
            folder,
            "is a model without the noise schedule of its scheduler",
            "give the folder of the pipeline, or wrap the model by patchindex.networks.wrap with schedule=",
        )
    parts = _read_json(folder / PIPELINE)
    named = parts.get("scheduler")
    if parts.get("unet") != ["diffusers", "UNet2DModel"] or not isinstance(named, list) or len(named) != 2:
        raise _refused(
            folder,
            f"is not a pipeline of a UNet2DModel and a scheduler, but a {parts.get('_class_name')}",
            "wrap its model by patchindex.networks.wrap",
        )
    scheduler_file = folder / "scheduler" / SCHEDULER
    settings = _read_json(scheduler_file)
    for kind in (named[1], settings.get("_class_name", named[1])):
        if not is_name_in(kind, SCHEDULERS):
            what = f"has a scheduler {kind!r:.60}, whose noise is not described as that of DDPMScheduler"
            raise _refused(folder / "scheduler", what, WRAP)
    steps = settings.get("num_train_timesteps", 1000)
    if not is_whole(steps) or not 1 <= steps <= MOST_STEPS:
        raise _refused(folder / "scheduler", f"has {steps!r:.40} time steps", AGAIN)
    model, scheduler = _load(folder)
    config = model.config
    prediction, classes = scheduler.config.prediction_type, config.num_class_embeds
    if not is_name_in(prediction, PREDICTS):
        raise _refused(
            folder, f"has the unknown prediction type {prediction!r:.40}", "wrap the model yourself"
        )
    sides = [config.sample_size] * 2 if is_whole(config.sample_size) else config.sample_size
    channels = config.in_channels
    if not _are_sides(sides) or not is_whole(channels) or config.out_channels != channels:
        raise _refused(
            folder,
            f"has sample_size {config.sample_size!r:.40}, {channels!r:.40} input and "
            f"{config.out_channels!r:.40} output channels",
            WRAP,
        )
    if config.class_embed_type is not None or (
        classes is not None and not (is_whole(classes) and classes >= 1)
    ):
        what = f"has {classes!r:.40} class embeddings of type {config.class_embed_type!r:.40}"
        raise _refused(folder, what, WRAP)
    try:
        schedule = NoiseTable(1 - scheduler.alphas_cumprod.double())
    except InputError as error:
        raise _refused(scheduler_file, f"its noise variances {error.what}", AGAIN) from None
    found = resolve_devices(device)[0]
    model = model.to(found).eval()

    def predict(x: Tensor, step: Tensor, label: Tensor | None = None) -> Tensor:
        try:
            predicted: Tensor = model(x, step, class_labels=label, return_dict=False)[0]
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            what = f"the model cannot compute images of shape {tuple(x.shape)} ({_line(error)})"
            raise PatchIndexError(what, where=folder, remedy=AGAIN) from error
        return predicted

    return Network(
        predict, (channels, sides[0], sides[1]), predicts=PREDICTS[prediction], time="index",
        schedule=schedule, labels=None if classes is None else range(classes),
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
    _check_size(UNet2DModel, folder / "unet")
    try:
        model, report = UNet2DModel.from_pretrained(
            folder / "unet", use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    except BAD_CONFIG as error:
        raise _refused(folder, f"diffusers cannot load it ({_line(error)})", AGAIN) from None
    # diffusers draws weights at random where the files have none.
    if missing := sorted(report["missing_keys"]):
        what = f"its files lack {len(missing)} weights of config.json, {missing[0]} first"
        raise _refused(folder / "unet", what, AGAIN)
    return model, scheduler


def _check_size(model: Any, folder: Path) -> None:
    """Refuse a config.json of a larger model than the files of weights hold, before memory is allocated.

    The numbers of values are compared, not the names: diffusers renames tensors of old models.
    """
    config = _read_json(folder / MODEL)
    if config.get("quantization_config") is not None:
        raise _refused(folder, "has quantised weights", WRAP)
    headers = [read_header(path, AGAIN)[0] for path in folder.glob("*.safetensors")]
    tensors = sum(map(len, headers))
    values = sum(prod(shape) for header in headers for _, shape in header.values())
    layers, blocks = config.get("layers_per_block", 2), config.get("down_block_types", [])
    if not is_whole(layers) or not isinstance(blocks, list) or max(layers, 1) * len(blocks) > tensors:
        what = f"config.json has {layers!r:.40} layers per block, and the files have {tensors:,} tensors"
        raise _refused(folder, what, AGAIN)
    try:
        with torch.device("meta"):  # no memory, whatever sizes config.json has
            wanted = sum(tensor.numel() for tensor in model.from_config(config).state_dict().values())
    except BAD_CONFIG as error:
        raise _refused(folder, f"diffusers cannot make the model ({_line(error)})", AGAIN) from None
    if wanted > values:
        what = f"config.json describes a model of {wanted:,} values, and its files have {values:,}"
        raise _refused(folder, what, AGAIN)


def _are_sides(found: Any) -> bool:
    return (
        isinstance(found, list | tuple)
        and len(found) == 2
        and all(is_whole(side) and 1 <= side <= LARGEST_SIDE for side in found)
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_regular(path, MOST_JSON, follow_links=True))
    except (ValueError, OSError, RecursionError) as error:
        raise _refused(path, f"cannot be read as JSON ({error})", "copy the file again") from None
    return content if isinstance(content, dict) else {}


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _refused(where: Path, what: str, remedy: str) -> InputError:
    return InputError(what, where=where, remedy=remedy)
