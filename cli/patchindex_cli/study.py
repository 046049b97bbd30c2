"""`patchindex study`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .computing import Computing
from .config import record_in
from .options import (
    LocalPath,
    RunOptions,
    SamplingOptions,
    count_option,
    one_label,
    run_options,
    sampling_options,
    store_path,
)
from .output import add_row, echo, new_table, print_json, print_table
from .outputs import check_output
from .progress import stages
from .repeat import report_store
from .sources import image_options, locality_of, open_training, parse_label, report_exact, store_record

if TYPE_CHECKING:
    from patchindex.study import Study

FILES = ("study.csv", "study.json", "study.png", "images.png")
COLUMNS = {  # format of a row of the summary, by heading
    "rmse": "{rmse:.4f}",
    "max error": "{max_error:.3f}",
    "coverage": "{coverage:.3f}",
    "rmse / stderr": "{least_ratio:.2f}-{largest_ratio:.2f}",
    "r": "{pearson_r:.5f}",
    "R2": "{r2:.4f}",
    "s / image": "{seconds:.2f}",
}


@click.command(cls=Computing, short_help="Compare estimators with the exact score.")
@click.argument("store", type=store_path)
@click.option("-o", "--output", required=True, type=LocalPath(), help="Folder for the files.")
@click.option(
    "--estimator",
    "estimators",
    metavar="NAME[:OPTION=VALUE,...]",
    multiple=True,
    help="Estimator to compare, such as topk:candidates=512. Repeat the option for more estimators.  "
    "[default: auto, or exact alone without an index]",
)
@count_option("-n", "Number of images.", 1)
@count_option("--repeats", "Repeat each estimate with other seeds, to measure its bias.", 1)
@sampling_options(batch_size=4)
@image_options
@run_options("Seed of the noise. Equal seeds give equal images, up to rounding.", several_devices=True)
def study(
    store: Path | str,
    output: Path,
    estimators: tuple[str, ...],
    n: int,
    repeats: int,
    options: SamplingOptions,
    run: RunOptions,
    **image: Any,
) -> None:
    """Measure the error of estimators against the exact score, on the images of a STORE.

    STORE may also be images, as `build` takes them. Without an index the default is `exact` alone: the study
    measures the time of exact scores and draws their images, and a line on stderr says from how many images
    on an index can pay. Without an index, `--estimator auto` samples the training images, from 1 024 images
    on, and `topk` is refused.

    Each estimator sees the noisy images of the exact trajectory; then it draws its own images from the same
    noise. Writes study.csv (one row per estimator, image and step), study.json (the rows, settings and
    summary), study.png (error, standard error, captured mass and time against t) and images.png (one row of
    images per estimator, the exact images first).

    \b
    Columns of the table that it prints:
      rmse, max error   error of the posterior mean at the worst step of the exact trajectory
      coverage          share of pixels whose error is within 2 standard errors, at the worst step
      rmse / stderr     smallest and largest of all steps; 1 if the standard errors are right
      r, R2             final images against the exact images, the worst image
      s / image         seconds per image

    \b
    Examples:
      patchindex study fashion.zarr -o study --estimator auto --estimator topk
      patchindex study fashion.zarr -o study -n 4 --estimator auto:tolerance=0.02 \\
          --estimator topk:candidates=1024 --repeats 4 --overwrite
      patchindex study photos/ -o time --resize 32 --limit 500 --steps 10
    """
    import patchindex
    from patchindex.estimators import parse_estimator
    from patchindex.figures import figure_class

    check_output(output, FILES, overwrite=options.overwrite, sources=[store], inputs=[image["labels"]])
    figure_class()  # matplotlib is optional: without it, fail before any work
    training = open_training(str(store), image, run)
    index = training.index
    machine = "ELS" if index is None else index.machine
    schedule = locality_of(machine, options, training)
    number = parse_label(one_label(options.label), training)
    machines = {}
    for text in estimators or ("auto" if index is not None and index.scales else "exact",):
        name, settings = parse_estimator(text)
        machines[text] = patchindex.ScoreMachine(
            training.source,
            estimator=name, locality=schedule, device=run.device, threads=run.threads, **settings,
        )  # fmt: skip
    if all(each.estimator == "exact" for each in machines.values()):
        report_exact(machine, training)
    kept = store_record(store, training, machines.values())
    report_store(kept)
    with stages() as progress:
        result = patchindex.study.compare(
            machines,
            n,
            options.steps,
            repeats=repeats,
            seed=run.seed,
            label=number,
            batch_size=options.batch_size,
            progress=progress,
        )
    _write(output, result, n)
    record_in(output / "study.json", store=kept)
    if run.as_json:
        files = [str(output / name) for name in FILES]
        print_json({"settings": result.settings, "summary": result.summary(), "files": files})
        return
    table = new_table(["estimator", *COLUMNS])
    table.columns[0].justify, table.columns[0].min_width, table.columns[0].overflow = "left", 16, "fold"
    for row in result.summary():
        known = {name: value for name, value in row.items() if value is not None}
        add_row(table, row["estimator"], *(_format(text, known) for text in COLUMNS.values()))
    print_table(table)
    _report_no_estimates(result)
    echo(f"written: {', '.join(str(output / name) for name in FILES)}")


def _report_no_estimates(result: Study) -> None:
    """Say on stderr which estimators computed every pixel exactly: their errors of 0 tell nothing."""
    height, width = result.images["exact"].shape[2:]
    for name in result.images:
        rows = [row for row in result.rows if (row["estimator"], row["trajectory"]) == (name, "exact")]
        if rows and all(row["exact_pixels"] == height * width for row in rows):
            echo(
                f"{name}: computed all pixels exactly, so its errors are 0: with these images and options, "
                "exact scores take less time than estimates. To see estimates, give more images or a larger "
                "tolerance, or tune the store (`patchindex tune`)",
                err=True,
            )


def _write(output: Path, result: Study, columns: int) -> None:
    import torch

    from patchindex.sampling.pictures import image_grid

    figure = result.plot()
    output.mkdir(parents=True, exist_ok=True)
    result.to_csv(output / "study.csv")
    result.to_json(output / "study.json")
    figure.savefig(output / "study.png", dpi=120)
    names = [name for name, images in result.images.items() for _ in range(0, len(images), columns)]
    grid = image_grid(torch.cat(list(result.images.values())), columns, row_names=names)
    grid.save(output / "images.png")


def _format(text: str, known: dict[str, Any]) -> str:
    """Fill in the format of a cell, or a dash where a value is unknown."""
    try:
        return text.format(**known)
    except KeyError:
        return "-"
