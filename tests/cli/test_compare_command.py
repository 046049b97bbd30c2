"""`patchindex compare` and `patchindex compare-table`: files, tables, resuming, and what they refuse."""

import json
import shutil

import numpy as np
import pytest
from commands import DATA, refused, run

SIZES = ("-n", 2, "--steps", 3, "--network-steps", 4, "--along", 1, "--noised", 1)
FILES = [
    *("curves.png", "images.csv", "images.png", "parts", "results.json", "scatter.png"),
    *("table.csv", "table.md", "trajectory.csv"),
]


@pytest.fixture(scope="session")
def network(source, tmp_path_factory):
    """A network that has seen the forty images for two steps."""
    path = tmp_path_factory.mktemp("network") / "run"
    run("train", source, "-o", path, "--channels", 16, "--layers", 1, "--steps", 2)
    return path


@pytest.fixture(scope="session")
def compared(store, network, tmp_path_factory):
    """The results of a comparison, and its folder."""
    out = tmp_path_factory.mktemp("compared") / "out"
    machines = "ELS,ELS:estimator=exact,IS"
    args = ("compare", store, "--network", network, "-o", out, "--machines", machines, *SIZES)
    return json.loads(run(*args, "--held-out", DATA, "--json").stdout), out


def test_compare_writes_tables_and_figures(compared):
    found, out = compared
    assert sorted(path.name for path in out.iterdir()) == FILES
    names = ["ELS", "ELS:estimator=exact", "IS"]
    assert [row["denoiser"] for row in found["summary"]] == names * 2
    assert [row["network_steps"] for row in found["summary"]] == [4] * 3 + [3] * 3
    results = json.loads((out / "results.json").read_text())
    assert results["name"] == "forty, resnet (zeros)"
    assert results["network"]["parameters"] > 1000
    assert results["settings"]["denoisers"]["ELS"]["estimator"] == "auto"
    assert results["settings"]["denoisers"]["ELS:estimator=exact"]["estimator"] == "exact"
    assert {row["inputs"] for row in results["points"]} == {"trajectory", "training", "held-out"}
    assert len((out / "images.csv").read_text().splitlines()) == 1 + 2 * 3 * 2
    auto, exact = found["summary"][:2]
    assert auto["pearson_r"] == pytest.approx(exact["pearson_r"], abs=0.002)


def test_compare_resumes_and_adds_images_and_machines(compared, store, network, tmp_path):
    out = shutil.copytree(compared[1], tmp_path / "out")
    args = ("compare", store, "--network", network, "-o", out, *SIZES, "--machines", "nearest,IS")
    assert "already has table.md, table.csv" in refused(*args)
    before = (out / "parts" / "IS" / "images-3.000000.npz").read_bytes()
    printed = run(*args, "-n", 3, "--resume").stdout
    assert "first better" in printed
    assert (out / "parts" / "IS" / "images-3.000000.npz").read_bytes() == before
    assert "has results of other settings: seed (was 0, is 1)" in refused(*args, "--resume", "--seed", 1)
    other = tmp_path / "other"
    run("train", DATA, "--limit", 40, "-o", other, "--channels", 16, "--layers", 1, "--steps", 3)
    args = ("compare", store, "--network", other, "-o", out, *SIZES, "--machines", "IS", "--resume")
    assert "parts: has results of a network with other weights; use the same" in refused(*args)


def test_images_are_compared_without_a_store(compared, source, network, tmp_path):
    args = ("compare", source, "--network", network, "-o", tmp_path / "out", *SIZES, "--machines", "ELS,IS")
    args += ("--along", 0, "--noised", 0)
    printed = run(*args, "-o", tmp_path / "default").stderr
    assert "no --locality: taking fashion-mnist-resnet-zeros for images of 28 x 28" in printed
    assert "was trained on other images" in refused(*args, "--locality", "3,3,5", "--limit", 30)
    printed = json.loads(run(*args, "--locality", "3,3,5", "--json").stdout)
    exact, ideal = (
        [row["pearson_r"] for row in printed["summary"] if row["denoiser"] == name] for name in ("ELS", "IS")
    )
    expected = [row["pearson_r"] for row in compared[0]["summary"] if row["denoiser"] == "IS"]
    assert ideal == pytest.approx(expected, abs=1e-6)
    assert all(-1 <= r <= 1 for r in exact)
    # There are no posterior means to write.
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [name for name in FILES if name not in ("curves.png", "trajectory.csv")]


def test_comparisons_join_into_one_table(compared, tmp_path):
    out = tmp_path / "joined"
    printed = run("compare-table", compared[1], compared[1], "-o", out).stdout
    lines = [line for line in printed.splitlines() if line.startswith("| forty, resnet (zeros) | ")]
    assert len(lines) == 2 * (2 * 2 + 2 + 1)  # r and R2 in two grids, differences in two grids, seconds
    assert (out / "table.md").read_text() in printed
    files = ["scatter.png", "table.csv", "table.md", "trajectories.png"]
    assert sorted(path.name for path in out.iterdir()) == files
    assert "already has table.md" in refused("compare-table", compared[1], "-o", out)
    assert "has no results.json" in refused("compare-table", tmp_path, "-o", tmp_path / "none")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--machines", "best"], "--machines: unknown denoiser 'best'; use one of IS, LS"),
        (["--machines", "IS,IS"], "--machines: IS is given twice; give it once"),
        (["--machines", "wiener:tau=2"], "wiener has no option 'tau'"),
        (["--network", "none"], "none: no such file or folder"),
        (["--network", "weights.pt"], "weights.pt: is a pickled file"),
        (
            ["--machines", "IS", "--estimator", "exact"],
            "--estimator: ELS is not among the denoisers; write IS:",
        ),
        (["--label", "9" * 5000], "--label: "),
        (["--label", 1], "--label: the network was trained without labels"),
        (["-n", 0], "'-n': 0 is not in the range"),
        (["--held-out", "none"], "none"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(store, network, tmp_path, args, message):
    args = ("compare", store, "--network", network, "-o", tmp_path / "out", "--machines", "IS", *args)
    assert message in refused(*args)
    assert not (tmp_path / "out" / "parts").exists()


def test_a_network_of_other_images_needs_an_option(store, tmp_path, fashion):
    source = tmp_path / "other.npz"
    np.savez(source, images=fashion[0][100:140], labels=fashion[1][100:140])
    run("train", source, "-o", tmp_path / "run", "--channels", 16, "--layers", 1, "--steps", 1)
    args = (
        "compare",
        store,
        "--network",
        tmp_path / "run",
        "-o",
        tmp_path / "out",
        "--machines",
        "IS",
        *SIZES,
    )
    message = refused(*args)
    assert "was trained on other images" in message
    assert "give its images with the same options, or --other-images" in message
    assert "IS" in run(*args, "--other-images").stdout


def test_a_network_with_labels_gets_each_label_in_turn(source, store, tmp_path):
    run(
        "train",
        source,
        "-o",
        tmp_path / "run",
        "--channels",
        16,
        "--layers",
        1,
        "--steps",
        1,
        "--conditional",
    )
    built = tmp_path / "labelled.zarr"
    run("build", source, "-o", built, "--machine", "IS")
    args = (
        "compare",
        built,
        "--network",
        tmp_path / "run",
        "-o",
        tmp_path / "out",
        "--machines",
        "IS",
        *SIZES,
    )
    run(*args)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["images"]
    assert [row["label"] for row in rows[:2]] == [0, 1]
