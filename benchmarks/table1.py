r"""Table 1 of Kamb & Ganguli (arXiv 2412.20292) for small networks: train, calibrate, compare, join.

    python benchmarks/table1.py --mnist mnist_train.npz --cifar10 cifar10_train.npz \
        --fashion-mnist fashion-mnist --work DIR
    python benchmarks/table1.py --mnist mnist_train.npz --only mnist-resnet-zeros --work DIR

Images are 32 x 32, as in the paper: MNIST and Fashion-MNIST are resized. CIFAR-10 and Fashion-MNIST networks
have class labels, as in the paper. For each network:

    DIR/runs/NAME       `patchindex train`
    DIR/scales/NAME     `patchindex calibrate --network`: 6 000 training images, or all images of a label
    DIR/stores/DATA     `patchindex build` without an index, for exact scores of all images
    DIR/NAME/SCHEDULE   `patchindex compare` by the calibrated schedule and by the published one

and last DIR/table.md, with a row for each comparison. Each command is printed, and resumes when the script is
run again. With --only, other networks are left out. Long: about 40 minutes of training on two cores for each
network, and as long again for the comparisons.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

MACHINES = ("LS", "IS", "wiener", "pca-locality", "pspc", "smoothed", "nearest")
# The masks that suit MNIST, whose border pixels hardly vary; chosen on held-out images, not by the paper.
MNIST_MASKS = "pca-locality:tau=0.05,relative_to=pixel"
CALIBRATION = 6000
TRAINING = ("--precision", "bfloat16", "--seed", "0")
RESNET = ("--arch", "resnet", "--channels", "64", "--lr", "1e-3", "--lr-decay", "0.9995", "--steps", "8000")
UNET = ("--lr", "5e-4", "--lr-decay", "0.99935", "--steps", "6000")


@dataclass(frozen=True)
class Row:
    """A network of the table."""

    data: str
    title: str
    training: tuple[str, ...]
    preset: str | None
    machine: str = "bbELS"


ROWS = {
    "mnist-resnet-zeros": Row("mnist", "MNIST, ResNet (zeros)", RESNET, "mnist-resnet-zeros"),
    "fashion-resnet-zeros": Row(
        "fashion_mnist", "Fashion-MNIST, ResNet (zeros)", RESNET, "fashion-mnist-resnet-zeros"
    ),
    "cifar10-resnet-zeros": Row("cifar10", "CIFAR-10, ResNet (zeros)", RESNET, "cifar10-resnet-zeros"),
    "mnist-unet-zeros": Row("mnist", "MNIST, UNet (zeros)", ("--arch", "unet", *UNET), "mnist-unet-zeros"),
    "cifar10-unet-zeros": Row(
        "cifar10", "CIFAR-10, UNet (zeros)", ("--arch", "unet", *UNET), "cifar10-unet-zeros"
    ),
    "cifar10-unet-attention": Row(
        "cifar10", "CIFAR-10, UNet with attention", ("--arch", "unet-attention", *UNET), "cifar10-unet-zeros"
    ),
    "mnist-resnet-circular": Row(
        "mnist",
        "MNIST, ResNet (circular)",
        (*RESNET, "--padding", "circular"),
        "mnist-resnet-circular",
        "ELS",
    ),
}
SIZE = {"mnist": ("--resize", "32"), "fashion_mnist": ("--resize", "32"), "cifar10": ()}
LABELS = {"fashion_mnist", "cifar10"}  # networks of these data have class labels


def patchindex(*command: str | Path) -> None:
    """Print a command of the package, run it, and end the script if the command fails."""
    words = [str(word) for word in command]
    print(f"\n$ patchindex {shlex.join(words)}", flush=True)
    start = time.perf_counter()
    code = subprocess.run([sys.executable, "-m", "patchindex", *words]).returncode
    print(f"# {time.perf_counter() - start:.0f} s", flush=True)
    if code:
        sys.exit(code)


def table_of(name: str, row: Row, source: str, work: Path, n: int, threads: tuple[str, ...]) -> list[Path]:
    """Make the comparisons of one network; return their folders."""
    size = SIZE[row.data]
    labels = ("--conditional",) if row.data in LABELS else ()
    run, store, scales = work / "runs" / name, work / "stores" / f"{row.data}.zarr", work / "scales" / name
    patchindex("train", source, "-o", run, *size, *labels, *row.training, *TRAINING, *threads, "--resume")
    if not store.exists():
        patchindex("build", source, "-o", store, *size, "--machine", "IS", "--resume", *threads)
    if not (scales / "schedule.json").exists():
        # A network without labels is compared with some images only: all of them would take hours.
        some = () if labels else ("--limit", str(CALIBRATION), "--other-images")
        beside = ("--beside", row.preset) if row.preset else ()
        patchindex(
            *("calibrate", source, "--network", run, "-o", scales, "--machine", row.machine, *size),
            *("--pixels", "256", *some, *beside, *threads, "--resume"),
        )
    masks = (MNIST_MASKS,) if row.data == "mnist" else ()
    machines = ",".join([row.machine, *MACHINES, *masks])
    folders = []
    for kind, locality in (("calibrated", scales / "schedule.json"), ("published", row.preset)):
        if locality is None:
            continue
        folder = work / name / kind
        # Only these denoisers have a locality schedule.
        chosen = machines if kind == "calibrated" else f"{row.machine},LS,pspc,IS"
        patchindex(
            *("compare", store, "--network", run, "-o", folder, "--machines", chosen, "-n", str(n)),
            *("--locality", locality, "--along", "5", "--noised", "5", *threads),
            *("--name", f"{row.title}, {kind} schedule", "--resume"),
        )
        folders.append(folder)
    return folders


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="folder for new files")
    parser.add_argument("--mnist", metavar="IMAGES")
    parser.add_argument("--cifar10", metavar="IMAGES")
    parser.add_argument("--fashion-mnist", metavar="IMAGES")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("-n", type=int, default=20, help="noises for each network")
    parser.add_argument("--threads")
    args = parser.parse_args()
    missing = {ROWS[name].data for name in args.only if getattr(args, ROWS[name].data) is None}
    if missing:
        flags = ", ".join(f"--{data.replace('_', '-')}" for data in sorted(missing))
        parser.error(f"give the images of {flags}, or leave out their networks with --only")
    threads = ("--threads", args.threads) if args.threads else ()
    folders = []
    for name in args.only:
        row = ROWS[name]
        folders += table_of(name, row, getattr(args, row.data), args.work, args.n, threads)
    joined = args.work / "joined"
    patchindex("compare-table", *folders, "-o", joined, "--overwrite")
    print(f"\n{joined / 'table.md'}")


if __name__ == "__main__":
    main()
