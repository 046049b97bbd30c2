r"""Messages and leftovers of a build whose disk is full, whose target is read-only, or whose source changes.

    python benchmarks/failures.py cifar10_train.npz --work DIR

Mounts small file systems in memory, which needs Linux and root. Prints the message, the exit code and the
files that are left, and shows that the build ends once the reason is gone.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import arguments, variant, write_json
from PIL import Image

import patchindex as pi

PATCHINDEX = [sys.executable, "-m", "patchindex"]
FOUND: list[dict[str, object]] = []


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a file system in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start a build of two scales."""
    command = [*PATCHINDEX, "build", *arguments, "--scales", "3,7", "--no-tune"]
    return subprocess.Popen(
        [str(part) for part in command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


def tell(what: str, process: subprocess.Popen[str], folder: Path) -> None:
    """Wait for a build; print and keep how it ended and the names of the files that are left."""
    message, left = process.communicate()[1].strip(), sorted(path.name for path in folder.iterdir())
    print(f"- {what}\n  exit code {process.returncode}: {message}\n  left: {left or 'nothing'}", flush=True)
    FOUND.append({"what": what, "exit code": process.returncode, "message": message, "left": left})


def main() -> None:
    parser = arguments(__doc__, work=True)
    args = parser.parse_args()
    work, limit = args.work, ("--limit", 3000)
    with mounted(work / "small", "size=100m") as disk:
        tell("a disk that is too small", start(args.source, "-o", disk / "s.zarr", *limit), disk)
    with mounted(work / "filling", "size=600m") as disk:
        path = disk / "s.zarr"
        process = start(args.source, "-o", path, *limit)
        while not list(disk.glob("s.zarr.building/scales/k007.tmp/shards/0*")):
            time.sleep(0.01)
        other = (disk / "other").open("wb", buffering=0)
        try:  # another program takes all free space
            while True:
                other.write(bytes(1 << 20))
        except OSError:
            other.close()
        tell("a disk that fills up at the second scale", process, disk)
        (disk / "other").unlink()
        tell("... and --resume with room again", start(args.source, "-o", path, *limit, "--resume"), disk)
        print(f"  whole: {pi.verify(path).whole}")
    with mounted(work / "readonly", "size=10m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        tell("a read-only target", start(args.source, "-o", disk / "s.zarr", *limit), disk)

    images = pi.open_images(args.source)[:]
    folder = work / "jpegs"
    folder.mkdir()
    for i in range(10_000):
        Image.fromarray(variant(images, i)).save(folder / f"{i:05d}.jpg", quality=95)
    bad = folder / "07341.jpg"
    data = bad.read_bytes()
    bad.write_bytes(data[: len(data) // 2])
    out = work / "out"
    out.mkdir()
    tell("a corrupt JPEG among 10 000", start(folder, "-o", out / "s.zarr"), out)
    tell("... with --skip-bad", start(folder, "-o", out / "s.zarr", "--skip-bad"), out)
    print(f"  {len(pi.open_index(out / 's.zarr').training)} images")
    bad.write_bytes(data)
    process = start(folder, "-o", out / "gone.zarr")
    while not list(out.glob("gone.zarr.building/images/c/0/0/0/0")):
        time.sleep(0.0005)
    folder.rename(work / "elsewhere")
    tell("a source folder that vanishes while it is read", process, out)
    write_json(args.json, found=FOUND)


if __name__ == "__main__":
    main()
