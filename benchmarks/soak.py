r"""Long use of one store: memory and time of a thousand images, and readers while images are appended.

    python benchmarks/soak.py data/fashion_mnist_6k.npz --work DIR --plot FILE

Builds a store of the first 5 500 images. One process draws 1 000 images by `auto`, ten at a time; the memory
(RSS) and the time of the last batches are compared with those after 50 images; CPU time too, which other
programs on the machine hardly change. `auto` is given its probes and candidates, because without them it
computes all pixels of so few images exactly; the run ends early if it computes more than half of them so.
Then eight processes draw the same image again and again, each time from the store as they find it, while 500
images are appended. Each drawn image has to be the image of the old store or of the new store; a reader whose
store was replaced while it draws gets one clear error, and opens the store again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, report, write_json
from matplotlib.figure import Figure

import patchindex as pi

LOCALITY, SCALES, MACHINE = "fashion-mnist-resnet-zeros", (3, 7, 13), "bbELS"
FIRST, MORE, BATCH, EARLY = 5500, 500, 10, 50
AUTO = {"estimator": "auto", "probes": 64, "candidates": 256, "tolerance": 0.05}
MOST_EXACT = 0.5  # share of the pixels that `auto` may compute exactly
READER = """
import json, sys
import patchindex as pi
path, count = sys.argv[1], 0
while True:
    try:
        images = pi.sample(pi.ScoreMachine(path, estimator="topk"), 1, 3, seed=0).images
        found = [round(float(v), 3) for v in images.abs().sum((1, 2, 3))]
    except pi.PatchIndexError as error:
        found = str(error).splitlines()[0]
    print(json.dumps(found), flush=True)
"""


def rss_mebibytes() -> float:
    """Return the resident memory of this process."""
    status = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def main() -> None:
    parser = arguments(__doc__, work=True)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=20, help="of each image")
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    path = args.work / "soak.zarr"
    images = pi.open_images(args.source, limit=FIRST)
    locality = pi.LocalitySchedule.of(LOCALITY).resized(images.shape[1])
    pi.build_index(images, path, scales=SCALES, machine=MACHINE, locality=locality, overwrite=True)
    batches = draw(path, args.n, args.steps)
    early, late = batches[EARLY // BATCH - 1], batches[-1]
    print(f"RSS: {early['rss']:.0f} MiB after {early['images']} images, {late['rss']:.0f} MiB after "
          f"{late['images']}: {late['rss'] / early['rss'] - 1:+.1%}")  # fmt: skip
    for key in ("seconds", "CPU seconds"):
        first, last = (
            float(np.median([each[key] for each in some])) for some in (batches[4:14], batches[-10:])
        )
        print(f"{key} per image: {first:.3f}, then {last:.3f}: {last / first - 1:+.1%}")
    print(f"computed exactly: {np.mean([each['exact'] for each in batches]):.2%} of the pixels")
    answers = read_while_appending(path, args.source, args.readers)
    report(answers, {"answer": "", "times": ","}, f"{args.readers} readers")
    if args.json:
        write_json(args.json, batches=batches, answers=answers)
    if args.plot:
        plot(batches, args.plot)


def draw(path: Path, n: int, steps: int) -> list[dict[str, Any]]:
    """Draw n images; return the memory, the time per image and the share of exact pixels of each batch."""
    m, rows = pi.ScoreMachine(path, **AUTO), []
    for first in range(0, n, BATCH):
        start, busy = time.perf_counter(), time.process_time()
        drawn = pi.sample(m, BATCH, steps, seed=0, first=first)
        seconds, cpu = (time.perf_counter() - start) / BATCH, (time.process_time() - busy) / BATCH
        pixels = sum(step["images"] for step in drawn.steps) * drawn.images[0, 0].numel()
        exact = sum(step["exact_pixels"] for step in drawn.steps) / pixels
        rows.append({"images": first + BATCH, "rss": rss_mebibytes(), "seconds": seconds, "CPU seconds": cpu,
                     "exact": exact})  # fmt: skip
        if exact > MOST_EXACT:
            raise SystemExit(
                f"auto computed {exact:.0%} of the pixels exactly, more than {MOST_EXACT:.0%}: the soak is "
                "for estimates; give more images"
            )
        if rows[-1]["images"] % 100 == 0:
            print(f"{rows[-1]['images']} images", file=sys.stderr)
    return rows


def read_while_appending(path: Path, source: Path, readers: int) -> list[dict[str, Any]]:
    """Append images while processes draw from the store; return how often each answer came."""
    reader = [sys.executable, "-c", READER, str(path)]
    before = ask(reader)
    start = time.perf_counter()
    running = [subprocess.Popen(reader, stdout=subprocess.PIPE, text=True) for _ in range(readers)]
    try:
        for process in running:  # all of them draw before the append starts
            process.stdout.readline()
        longest = time.perf_counter() - start
        every = pi.open_images(source, limit=FIRST + MORE)
        labels = None if every.labels is None else every.labels[FIRST:]
        pi.append(path, every.read(slice(FIRST, FIRST + MORE)), labels)
        time.sleep(2 * longest)  # all of them open the new store and draw
    finally:
        for process in running:
            process.terminate()
    after = ask(reader)
    found = Counter[str]()
    for process in running:
        for line in process.communicate()[0].splitlines():
            answer = json.loads(line)
            found["old" if answer == before else "new" if answer == after else f"{answer}"] += 1
    return [{"answer": answer, "times": times} for answer, times in found.most_common()]


def ask(reader: list[str]) -> Any:
    """Return the first answer of a reader."""
    with subprocess.Popen(reader, stdout=subprocess.PIPE, text=True) as process:
        answer = json.loads(process.stdout.readline())
        process.terminate()
    return answer


def plot(batches: list[dict[str, Any]], path: Path) -> None:
    """Draw memory and time per image against the number of images."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    images = [each["images"] for each in batches]
    memory, seconds = figure.subplots(2, sharex=True)
    memory.plot(images, [each["rss"] for each in batches])
    memory.set_ylabel("RSS (MiB)")
    for key, label in (("seconds", "by the clock"), ("CPU seconds", "of the CPU")):
        seconds.plot(images, [each[key] for each in batches], label=label)
    seconds.set_ylabel("seconds per image")
    seconds.legend()
    for axes in (memory, seconds):
        axes.set_ylim(top=1.2 * axes.dataLim.ymax)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    seconds.set_xlabel("images drawn by one process")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
