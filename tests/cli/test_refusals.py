"""What the commands refuse, and what they say where less is done than was asked for."""

import doctest
import sys

import patchindex_cli
import pytest
import zarr
from commands import refused, run, small_store

from patchindex.store.checksums import write_checksummed


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return small_store(tmp_path_factory)


def test_words():
    from patchindex_cli import words

    assert doctest.testmod(words).failed == 0


def test_an_interrupted_import_is_one_line(monkeypatch):
    class Interrupting:
        def find_spec(self, name, *_):
            if name == "patchindex_cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "patchindex_cli.app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        patchindex_cli.main  # noqa: B018
    assert ended.value.code == "Error: interrupted"  # which Python prints on stderr, and ends with 1


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_url_is_no_place_to_build(dry, store, tmp_path, monkeypatch):
    data = store.with_suffix(".npz")
    monkeypatch.chdir(tmp_path)
    for command in (
        ("build", data, "--scales", "3", "-o", "s3://bucket/s.zarr", *dry),
        ("build", "--add-scales", "9", "-o", "s3://bucket/s.zarr", *dry),
        ("append", "s3://bucket/s.zarr", data),
        ("sample", store, "-o", "s3://bucket/out"),
        ("study", store, "-o", "s3://bucket/out"),
    ):
        assert "s3://bucket/" in (said := refused(*command))
        assert "is a URL; write to a local disk, and copy it there" in said
    assert list(tmp_path.iterdir()) == []


def test_an_empty_path_is_refused(store, tmp_path, monkeypatch):
    data = store.with_suffix(".npz")
    monkeypatch.chdir(tmp_path)
    for command in (
        ("build", data, "--scales", "3", "-o", ""),
        ("build", data, "--scales", "3", "-o", "", "--dry-run"),
        ("sample", store, "-o", ""),
    ):
        assert "--output: is empty" in refused(*command)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_what_the_build_would(store, tmp_path, monkeypatch):
    data = store.with_suffix(".npz")
    build = ("build", data, "--scales", "3", "--dry-run")
    assert "exists already; use another path, or --overwrite" in refused(*build, "-o", store)
    run(*build, "-o", store, "--overwrite")
    zarr.open_group(tmp_path / "s.zarr.building", mode="w")
    write_checksummed(tmp_path / "s.zarr.building" / "settings.json", {"scales": [3]})
    assert "an unfinished build is there" in refused(*build, "-o", tmp_path / "s.zarr")
    said = refused(*build, "-o", tmp_path / "t.zarr", "--memory", "9M")
    assert "--memory: the build may need" in said
    assert "raise it" in said
    (tmp_path / "file").write_text("")
    assert "cannot write there" in refused(*build, "-o", tmp_path / "file" / "s.zarr")
    assert "is no name for a store" in refused(*build, "-o", "/")
    assert "tpu" in refused(*build, "-o", tmp_path / "t.zarr", "--device", "tpu")
    monkeypatch.chdir(tmp_path)
    assert "exists and is not a patchindex store" in refused(*build, "-o", ".", "--overwrite")
    more = ("build", "--add-scales", "9", "-o", store, "--dry-run")
    assert "DOES NOT FIT" in run(*more, "--memory", "9M", code=2).stdout
    run(*more)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "s.zarr.building"]


def test_a_dry_run_resumes_the_same_build_only(store):
    build = ("build", store.with_suffix(".npz"), "-o", store, "--dry-run", "--resume")
    assert "is built already: --resume has nothing to do" in run(*build, "--locality", "3,3,5,7").stderr
    assert "other settings (scales)" in refused(*build, "--scales", "9")


@pytest.mark.parametrize("machine", ["IS", "LS"])
@pytest.mark.parametrize("option", ["--scales", "--pca-dims", "--lists", "--cluster"])
def test_machines_without_an_index_refuse_its_options(machine, option, store, tmp_path):
    said = refused(
        "build", store.with_suffix(".npz"), "-o", tmp_path / "s", "--machine", machine, option, "3"
    )
    assert f"{option}: {machine} has no index for this; leave it out" in said


@pytest.mark.parametrize("option", ["--scales", "--add-scales"])
def test_an_empty_list_of_scales_is_refused(option, store, tmp_path):
    source = [store.with_suffix(".npz")] if option == "--scales" else []
    assert f"{option}: there are none" in refused("build", *source, "-o", tmp_path / "s", option, "")


@pytest.mark.parametrize("option", ["--limit", "--lists", "--pca-dims", "--crop", "--resize"])
def test_numbers_are_at_least_one(option, store, tmp_path):
    for value in ("0", "-1"):
        said = refused(
            "build", store.with_suffix(".npz"), "-o", tmp_path / "s", "--scales", "3", option, value
        )
        assert f"'{option}': {value} " in said


def test_what_is_clamped_is_told(store, tmp_path):
    build = (
        "build",
        store.with_suffix(".npz"),
        "-o",
        tmp_path / "s.zarr",
        "--scales",
        "3,5",
        "--no-tune",
    )
    much = ("--lists", 10**6, "--pca-dims", 16, "--limit", 1000)
    for more in (("--dry-run",), ()):
        limit, *told = run(*build, *much, *more).stderr.splitlines()
        assert limit == "--limit: there are 40 images, fewer than 1,000"
        assert [line.partition(":")[0] for line in told] == ["--lists", "--pca-dims", "--lists"]
        assert " at k = 3, not 1,000,000: 32 patches a list at least" in told[0]
        assert "9 at k = 3, not 16: " in told[1]
    asked = run(*build, "--lists", 20, "--pca-dims", 9, "--limit", 40, "--overwrite")
    assert asked.stderr == ""


def test_scales_that_are_there_are_nothing_to_do(store):
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    for more in ((), ("--dry-run",)):
        done = run("build", "--add-scales", "3,5", "-o", store, *more)
        assert done.stdout == ""
        assert done.stderr == f"nothing to add: {store} has k = 3, 5 already\n"
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before


def test_a_machine_is_meant_in_any_case(store, tmp_path):
    build = ("build", store.with_suffix(".npz"), "-o", tmp_path / "s.zarr", "--scales", "3", "--dry-run")
    assert "bbELS, 40 images" in run(*build, "--machine", "bbels").stdout


def test_a_store_without_a_schedule_says_how_to_sample(store, tmp_path):
    build = ("build", store.with_suffix(".npz"), "-o", tmp_path / "s.zarr", "--no-tune")
    said = "no schedule of its own: give --locality when you sample"
    assert said in run(*build, "--scales", "3").stdout
    assert said not in run(*build, "--locality", "3,3", "--overwrite").stdout
    assert said not in run(*build, "--machine", "IS", "--overwrite").stdout
