"""Finished results of a comparison: an interrupted one resumes, and another network reuses them."""

from __future__ import annotations

import csv
import io
import os
import zipfile

import numpy as np
import pytest
import torch
from stand_ins import OPTIONS, SHORT, SIZE, Fragile, Reweighted, StoppedError
from watched import linux_only, run_watched

import patchindex as pi
from patchindex.errors import InputError, OutputExistsError, StoreError
from patchindex.study import TheoryOptions, theory
from patchindex.study.parts import hold_folder


def tables(folder):
    """Return all tables without the seconds."""

    def known(row):
        return {key: value for key, value in row.items() if "seconds" not in key}

    with (folder / "images.csv").open() as file, (folder / "trajectory.csv").open() as other:
        return [known(row) for reader in (csv.DictReader(file), csv.DictReader(other)) for row in reader]


def test_a_killed_comparison_resumes_with_the_same_tables(denoisers, tmp_path):
    def run(folder, calls, **options):
        every = {"IS": denoisers["IS"], "a/b:c": Fragile((1, SIZE, SIZE), calls)}
        found = theory(denoisers["LS"], every, 5, options=OPTIONS, folder=folder, **options)
        found.write(folder)

    run(tmp_path / "whole", 1000)
    for calls in (4, 8, 5):  # each run goes on where the one before stopped
        with pytest.raises(StoppedError):
            run(tmp_path / "killed", calls, resume=True)
    kept = {path: path.read_bytes() for path in (tmp_path / "killed").rglob("*.npz")}
    run(tmp_path / "killed", 1000, resume=True)
    assert tables(tmp_path / "killed") == tables(tmp_path / "whole")
    assert len(kept) > 10
    assert all(path.read_bytes() == content for path, content in kept.items())


def test_images_and_denoisers_are_added_to_a_finished_comparison(denoisers, tmp_path):
    def run(names, n, **options):
        every = {name: denoisers[name] for name in names}
        return theory(denoisers["LS"], every, n, options=OPTIONS, folder=tmp_path, **options)

    first = run(["IS"], 3)
    second = run(["bbELS", "IS"], 5, resume=True)
    assert torch.equal(second.finals["IS"][:3], first.finals["IS"])
    assert len(second.finals["bbELS"]) == 5
    with pytest.raises(OutputExistsError, match=r"already has results; continue with resume=True, or use"):
        run(["IS"], 3)
    again = run(["LS"], 2, overwrite=True)
    assert list(again.finals) == ["network, 6 steps", "network, 4 steps", "LS"]
    assert not list((tmp_path / "parts" / "IS").glob("*.npz"))


def test_results_of_other_settings_are_refused(denoisers, images, held_out, tmp_path):
    def run(machine=denoisers["bbELS"], network=denoisers["LS"], held_out=None, **changed):
        options = TheoryOptions(**{**vars(OPTIONS), **changed})
        every = {"bbELS": machine}
        return theory(network, every, 2, options=options, held_out=held_out, folder=tmp_path, resume=True)

    run()
    run(held_out=held_out, noised=2)
    run(held_out=held_out)
    with pytest.raises(InputError, match="parts: has results of other held-out images; use the same"):
        run(held_out=255 - np.asarray(held_out))
    weights = Reweighted(denoisers["LS"])
    with pytest.raises(InputError, match="parts: has results of a network with other weights; use the same"):
        run(network=weights)
    with pytest.raises(
        InputError, match=r"has results of other settings: seed \(was 5, is 6\); use the same"
    ):
        run(seed=6)
    other = pi.denoiser("bbELS", *images, estimator="exact", noise=denoisers["LS"].noise, locality=5)
    with pytest.raises(
        InputError, match=r"has results of bbELS with other settings: locality\.pairs \(was \[\["
    ):
        run(other)
    run(batch_size=1)


def test_results_of_other_held_out_images_are_replaced_and_all_others_kept(denoisers, held_out, tmp_path):
    def run(held_out, folder=None, names=("bbELS", "IS"), **options):
        every = {name: denoisers[name] for name in names}
        found = theory(
            denoisers["LS"], every, 2, options=OPTIONS, held_out=held_out, folder=folder, **options
        )
        return [row["mse"] for row in found.points if row["denoiser"] == "bbELS"]

    def files():
        every = {path: path.read_bytes() for path in tmp_path.rglob("*.npz")}
        return every, {path for path in every if path.name.startswith("held-out.")}

    other = 255 - np.asarray(held_out)
    first = run(held_out, tmp_path)
    before, replaced = files()
    again = run(other, tmp_path, names=["bbELS"], resume=True, overwrite=True)
    assert again == pytest.approx(run(other, names=["bbELS"]), rel=1e-6)
    assert again != pytest.approx(first, rel=1e-2)
    after, new = files()
    assert {path.parent.name for path in replaced} - {path.parent.name for path in new} == {"IS"}
    assert all(after[path] == content for path, content in before.items() if path not in replaced)
    assert len(before) > len(replaced) > 0


def test_no_result_of_an_earlier_network_is_left_when_another_network_replaces_it(images, tmp_path):
    def run(network, folder=None, **options):
        every = {"IS": pi.denoiser("IS", *images)}
        rows = theory(network, every, 2, options=OPTIONS, folder=folder, **options).points
        return [row["mse"] for row in rows]

    first = pi.networks.wrap(lambda x, t: 0.5 * x, (1, SIZE, SIZE), predicts="x0")
    second = pi.networks.wrap(lambda x, t: 0.2 * x, (1, SIZE, SIZE), predicts="v")
    before = run(first, tmp_path)
    with pytest.raises(InputError, match=r"has results of network with other settings: predicts"):
        run(second, tmp_path, resume=True)
    after = run(second, tmp_path, resume=True, overwrite=True)
    assert after == pytest.approx(run(second), rel=1e-6)
    assert after != pytest.approx(before, rel=1e-2)


def test_results_of_another_label_and_of_other_labels_are_refused(images, tmp_path):
    network = pi.networks.wrap(lambda x, t: 0.5 * x, (1, SIZE, SIZE), predicts="x0")

    def run(label, labels):
        every = {"wiener": pi.denoiser("wiener", images[0], labels, label=label)}
        return theory(network, every, 2, options=OPTIONS, folder=tmp_path, resume=True)

    run(1, images[1])
    with pytest.raises(InputError, match=r"has results of wiener with other settings: label \(was 1, is 4\)"):
        run(4, images[1])
    with pytest.raises(InputError, match=r"has results of other settings: training_labels"):
        run(1, np.roll(images[1], 1))


@pytest.mark.parametrize(
    "damage",
    [
        *("short", "empty", "other", "method", "fifo", "settings", "settings of a list"),
        *("packed", "shape", "integers", "infinite", "a number"),
    ],
)
def test_damaged_results_are_named(denoisers, tmp_path, damage):
    def run():
        every = {"IS": denoisers["IS"]}
        return theory(denoisers["LS"], every, 2, options=SHORT, folder=tmp_path, resume=True)

    run()
    path = next((tmp_path / "parts" / "IS").glob("images*.npz"))
    if damage.startswith("settings"):
        path = tmp_path / "parts" / "settings.json"
        path.write_text("{" if damage == "settings" else "[]")
    elif damage == "other":
        np.savez(path, images=np.zeros(2))
    elif damage == "method":  # an unknown compression, in the directory of the archive
        content = bytearray(path.read_bytes())
        content[content.rindex(b"PK\1\2") + 10] = 99
        path.write_bytes(content)
    elif damage == "fifo":
        path.unlink()
        os.mkfifo(path)
    elif damage == "packed":
        np.savez_compressed(path, numbers=np.arange(2), images=np.zeros(2), seconds=np.zeros(2))
    elif damage in ("shape", "integers", "infinite", "a number"):
        with np.load(path) as file:
            arrays = dict(file)
        images, numbers = arrays["images"], arrays["numbers"]
        changes = {
            "shape": {"images": images[:, :, 1:]},
            "integers": {"images": images.astype(int)},
            "infinite": {"images": images * np.inf},
            "a number": {"numbers": numbers[0]},
        }
        np.savez(path, **{**arrays, **changes[damage]})
    else:
        path.write_bytes(path.read_bytes()[: 200 if damage == "short" else 0])
    with pytest.raises(StoreError, match=path.name) as caught:
        run()
    assert "; delete" in str(caught.value)
    assert "\n" not in str(caught.value)


def compare_is(denoisers, folder):
    return theory(denoisers["LS"], {"IS": denoisers["IS"]}, 2, options=SHORT, folder=folder, resume=True)


@pytest.fixture
def packed(denoisers, tmp_path):
    """The folder of a comparison of IS whose images unpack from less than 1 MiB to 256 MiB."""
    compare_is(denoisers, tmp_path)
    path = next((tmp_path / "parts" / "IS").glob("images*.npz"))
    header, about = io.BytesIO(), {"descr": "<f4", "fortran_order": False, "shape": (2, 1, 1 << 12, 1 << 13)}
    np.lib.format.write_array_header_1_0(header, about)
    with np.load(path) as file, zipfile.ZipFile(path.with_suffix(".new"), "w") as archive:
        for name in ("numbers", "seconds"):
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, file[name])
        packed = zipfile.ZipInfo("images.npy")
        packed.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(packed, "w", force_zip64=True) as member:
            member.write(header.getvalue())
            for _ in range(256):
                member.write(bytes(1 << 20))
    path.with_suffix(".new").replace(path)
    assert path.stat().st_size < 1 << 20
    return tmp_path


def test_a_packed_part_is_refused(denoisers, packed):
    with pytest.raises(StoreError, match=r"is damaged .is packed.; delete it"):
        compare_is(denoisers, packed)


READ = """
from pathlib import Path
from patchindex.errors import StoreError
from patchindex.study.parts import Parts

folder = Path(sys.argv[1])
settings = json.loads((folder / "parts" / "settings.json").read_text())
parts = Parts(folder, settings, lambda *_: {"images": (1, 4096, 8192)}, resume=True)

def read():
    try:
        parts.missing("IS", "images-2", [0, 1])
    except StoreError:
        return
    raise AssertionError("the part is not refused")

print(json.dumps(rise(read)))
"""


@linux_only
def test_a_packed_part_takes_no_memory(packed):
    assert run_watched(READ, packed) < 100 << 20


def test_a_second_comparison_in_the_same_folder_is_refused(denoisers, tmp_path):
    every = {"IS": denoisers["IS"]}
    with hold_folder(tmp_path / "run"), pytest.raises(InputError, match="another process writes to this"):
        theory(denoisers["LS"], every, 2, options=OPTIONS, folder=tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_results_without_settings_are_refused(denoisers, tmp_path):
    def run(**options):
        every = {"IS": denoisers["IS"]}
        return theory(denoisers["LS"], every, 2, options=SHORT, folder=tmp_path, **options)

    run()
    (tmp_path / "parts" / "settings.json").unlink()
    with pytest.raises(InputError, match="has results without settings; use the same settings, another fold"):
        run(resume=True)
    run(overwrite=True)


def test_images_of_denoisers_are_reused_with_another_network(images, denoisers, tmp_path):
    def run(network, folder, calls, **options):
        fragile = Fragile((1, SIZE, SIZE), calls)
        every = {"black": fragile, "IS": denoisers["IS"], "LS": pi.denoiser("LS", *images, **options)}
        return theory(
            network, every, 3, options=SHORT, folder=tmp_path / folder, reuse=reuse, resume=folder == "second"
        )

    reuse = None
    first = run(denoisers["LS"], "first", 1000, locality=3)
    reuse = tmp_path / "first"
    with pytest.raises(StoppedError):  # one image more than there is to reuse
        theory(
            denoisers["bbELS"], {"black": Fragile((1, SIZE, SIZE), 0), "IS": denoisers["IS"]}, 4,
            options=SHORT, folder=tmp_path / "second", reuse=reuse,
        )  # fmt: skip
    second = run(denoisers["bbELS"], "second", 0, locality=5)
    assert torch.equal(second.finals["black"], first.finals["black"])
    assert not torch.equal(second.finals["LS"], first.finals["LS"])  # it has another schedule
    assert not torch.equal(second.finals["network, 2 steps"], first.finals["network, 2 steps"])


def test_without_a_folder_only_images_of_the_same_denoiser_are_reused(images, denoisers, tmp_path):
    def run(locality, **places):
        every = {"IS": denoisers["IS"], "LS": pi.denoiser("LS", *images, locality=locality)}
        return theory(denoisers["bbELS"], every, 2, options=SHORT, **places).finals["LS"]

    first = run(3, folder=tmp_path)
    again, other = (run(locality, reuse=tmp_path) for locality in (3, 5))
    assert torch.equal(again, first)
    assert torch.equal(other, run(5))
    assert not torch.equal(other, first)


def test_only_results_of_the_same_images_and_settings_are_reused(denoisers, tmp_path):
    def run(folder, **options):
        settings = TheoryOptions(steps=2, network_steps=2, along=0, noised=0, **options)
        return theory(
            denoisers["LS"],
            {"IS": denoisers["IS"]},
            2,
            options=settings,
            folder=tmp_path / folder,
            reuse=reuse,
        )

    reuse = tmp_path / "none"
    with pytest.raises(InputError, match=r"none: has no results; give the folder of a comparison"):
        run("first")
    reuse = None
    run("first", seed=1)
    reuse = tmp_path / "first"
    with pytest.raises(InputError, match=r"has results of other settings: seed \(was 1, is 2\)"):
        run("second", seed=2)


def test_nothing_is_written_to_the_folder_whose_results_are_reused(denoisers, tmp_path):
    def run(network, folder, seed, **options):
        settings = TheoryOptions(steps=2, network_steps=2, along=0, noised=0, seed=seed)
        every = {"IS": denoisers["IS"]}
        return theory(network, every, 2, options=settings, folder=tmp_path / folder, **options)

    def contents():
        return {path: path.read_bytes() for path in (tmp_path / "first").rglob("*") if path.is_file()}

    with pytest.raises(StoppedError):  # a comparison that has begun, and has no results yet
        run(Fragile((1, SIZE, SIZE), 0), "first", seed=1)
    before = contents()
    assert [path.name for path in before] == ["settings.json"] * len(before) != []
    with pytest.raises(
        InputError, match=r"other settings: seed \(was 1, is 2\); use the same settings, or another folder$"
    ):
        run(denoisers["LS"], "second", seed=2, reuse=tmp_path / "first")
    run(denoisers["LS"], "second", seed=1, reuse=tmp_path / "first")
    assert contents() == before
