"""`patchindex train`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from .computing import Computing
from .config import record_of
from .options import (
    LocalPath,
    NameIn,
    RunOptions,
    count_option,
    parse_integers,
    run_options,
)
from .output import count, echo, note, print_json
from .outputs import check_output
from .progress import SECONDS_PER_LINE, resumable, stages
from .sources import image_options, open_source

SETTINGS = (  # options that are attributes of `TrainSettings`
    *("arch", "conditional", "noise", "lr", "lr_decay", "batch_size", "epochs", "steps", "minutes", "ema"),
    *("precision", "validation"),
)


@click.command(cls=Computing, short_help="Train a network.")
@click.argument("source")
@click.option("-o", "--output", required=True, type=LocalPath(), help="Folder for the run.")
@click.option(
    "--arch",
    type=NameIn("patchindex.networks", "ARCHITECTURES"),
    default="resnet",
    show_default=True,
    help="resnet, unet, or unet-attention.",
)
@count_option("--channels", "resnet: channels, a multiple of 8.  [default: 256]")
@count_option("--layers", "resnet: residual blocks.  [default: 6]")
@click.option(
    "--widths",
    metavar="N,N,...",
    help="unet: channels of each level, finest first.  [default: 64,128,256]",
)
@click.option(
    "--attention",
    metavar="N,N,...",
    help="unet: levels with self-attention, 0 the finest.  [default: none; unet-attention: all but 0]",
)
@click.option(
    "--padding",
    type=NameIn("patchindex.networks.architectures", "PADDINGS"),
    default="zeros",
    show_default=True,
    help="Padding of the convolutions: zeros or circular.",
)
@click.option("--conditional", is_flag=True, help="Train with the class labels of the images.")
@click.option("--lr", type=float, default=1e-4, show_default=True, help="Learning rate.")
@click.option(
    "--lr-decay", type=float, default=0.999965, show_default=True, help="Factor of the rate at each step."
)
@count_option("--batch-size", "Images per step.", 128)
@count_option("--epochs", "End after N passes over the images.  [default: 300, without another limit]")
@count_option("--steps", "End after N steps.")
@click.option("--minutes", type=float, help="End after this time, over all parts of a resumed run.")
@click.option("--ema", type=float, metavar="DECAY", help="Average the weights, with this decay at each step.")
@click.option(
    "--precision",
    type=NameIn("patchindex.networks.settings", "PRECISIONS"),
    default="float32",
    show_default=True,
    help="float32, or bfloat16 for mixed precision.",
)
@click.option(
    "--noise",
    type=NameIn("patchindex.schedules", "NOISE_SCHEDULES"),
    default="cosine",
    show_default=True,
    help="Noise schedule.",
)
@count_option("--validation", "Hold out the last N images, and measure the loss on them.", 0, least=0)
@click.option("--resume", is_flag=True, help="Continue an interrupted run of the same command.")
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace an earlier run; with --resume, only a run of other settings or images.",
)
@image_options
@run_options("Seed of the weights, the order of the images, the times and the noise.")
def train(
    source: str,
    output: Path,
    channels: int | None,
    layers: int | None,
    widths: str | None,
    attention: str | None,
    padding: str,
    resume: bool,
    overwrite: bool,
    run: RunOptions,
    **values: Any,
) -> None:
    """Train a network on the images of SOURCE to predict their noise.

    The defaults are the networks and the recipe of Kamb & Ganguli (arXiv 2412.20292). Writes
    weights.safetensors and run.json (settings, fingerprint of the images), loss.csv and loss.png, and
    state.safetensors, from which --resume continues. A checkpoint is written every two minutes.

    \b
    Examples:
      patchindex train data/fashion_mnist_6k.npz -o run --channels 64 --layers 6 --minutes 40 \\
          --precision bfloat16 --lr 1e-3
      patchindex train mnist.npz -o circular --resize 32 --padding circular --epochs 50 --device cuda
      patchindex train cifar10.npz -o cifar-unet --arch unet-attention --conditional --ema 0.9999
      patchindex train --config run/run.json -o other --seed 1
    """
    import patchindex
    from patchindex.networks import TrainSettings

    options = {
        "channels": channels,
        "layers": layers,
        "widths": None if widths is None else parse_integers(widths, "widths"),
        "attention": None if attention is None else parse_integers(attention, "attention", "1,2"),
        "padding": padding,
    }
    settings = TrainSettings(
        options={name: value for name, value in options.items() if value is not None},
        seed=run.seed,
        **{name: values.pop(name) for name in SETTINGS},
    )
    check_output(output, sources=[source], inputs=[values["labels"]], own="run")
    images = open_source(source, values)
    with resumable(output), stages() as progress:
        record = patchindex.networks.train(
            images,
            output,
            settings,
            device=run.device,
            threads=run.threads,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            report=_Report(),
            command=record_of(click.get_current_context()),
        )
    if run.as_json:
        print_json(record)
        return
    seconds = record["seconds"]
    time_taken = f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min"
    loss = "no loss yet" if record["loss"] is None else f"loss {record['loss']:.4f}"
    echo(
        f"{output}: {count(record['parameters'], 'parameter')}, {count(record['step'], 'step')} "
        f"({record['epochs']:.1f} epochs) in {time_taken}, {loss}"
    )


class _Report:
    """Lines with the loss on stderr, at most one every half minute."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, row: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self._last < SECONDS_PER_LINE:
            return
        self._last = now
        held_out = row["validation_loss"]
        more = "" if held_out is None else f", {held_out:.4f} on held-out images"
        note(f"step {row['step']:,}: loss {row['loss']:.4f}{more}")
