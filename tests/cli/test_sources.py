"""The labels and the image options that commands share."""

import unicodedata

import numpy as np
import pytest
from commands import run
from patchindex_cli.sources import Training, parse_label
from PIL import Image

from patchindex.errors import InputError
from patchindex.images import open_images


@pytest.fixture
def numbered(tmp_path):
    """One image in each of the folders 0 to 10, which sort as text: 0, 1, 10, 2, ..."""
    for i in range(11):
        (tmp_path / "set" / f"{i}").mkdir(parents=True)
        Image.new("L", (8, 8), i).save(tmp_path / "set" / f"{i}" / "a.png")
    images = open_images(tmp_path / "set", labels="folders")
    return Training(images, images)


def test_a_name_wins_over_a_number(numbered, capsys):
    for text, pixel, said in (
        ("2", 2, "--label 2: the label called '2', which has the number 3\n"),
        ("10", 10, "--label 10: the label called '10', which has the number 2\n"),
        ("1", 1, ""),
    ):
        label = parse_label(text, numbered)
        assert numbered.images[numbered.images.labels == label][0, 0, 0, 0] == pixel
        assert capsys.readouterr().err == said
    assert parse_label(None, numbered) is None


def test_the_name_of_a_number_is_said(tmp_path, capsys):
    images = open_images(np.zeros((3, 8, 8), np.uint8), labels=[0, 1, 2])
    plain = Training(images, images)
    assert parse_label("2", plain) == 2
    assert capsys.readouterr().err == ""
    images.label_names = ("ant", "bee", unicodedata.normalize("NFD", "épée"))
    assert parse_label("1", plain) == 1
    assert capsys.readouterr().err == "--label 1: the label with this number, called 'bee'\n"
    for form in ("NFC", "NFD"):
        assert parse_label(unicodedata.normalize(form, "épée"), plain) == 2
    with pytest.raises(InputError, match="no label called 'cow'"):
        parse_label("cow", plain)
    with pytest.raises(InputError, match="no label called '1_0'"):
        parse_label("1_0", plain)


def test_errors_name_the_options_of_images(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    np.save(folder / "axes.npy", np.zeros((20, 24, 3), np.uint8))
    np.save(folder / "values.npy", np.full((5, 8, 8), 51 / 255))
    Image.new("L", (20, 20)).save(folder / "a.png")
    for options, words in (
        ([folder / "axes.npy"], "say which, with --axes NHW or --axes HWC"),
        ([folder / "values.npy"], "say which, with --values unit or --values signed"),
        ([folder, "--max-pixels", 399], "allow it with --max-pixels 400"),
    ):
        assert words in run("build", *options, "-o", tmp_path / "s.zarr", "--dry-run", code=2).stderr
