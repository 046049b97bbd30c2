"""Arguments that all denoisers take: labels by number and by name."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import patchindex as pi
from patchindex.errors import InputError


@pytest.fixture(scope="module")
def named(real_images, tmp_path_factory):
    """A store of images with names of labels, and the names."""
    pixels, labels = real_images(12, 10, classes=(2, 5))
    folder = tmp_path_factory.mktemp("named")
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        place = folder / {2: "pullover", 5: "5"}[int(label)]
        place.mkdir(exist_ok=True)
        Image.fromarray(image.squeeze()).save(place / f"{number}.png")
    source = pi.open_images(folder, labels="folders")
    return pi.build_index(source, folder.with_suffix(".zarr"), machine="LS", locality=5), source


@pytest.mark.parametrize("kind", [0, 1])
def test_a_label_has_a_number_or_a_name(named, kind):
    x = torch.randn(2, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    m = pi.ScoreMachine(named[kind], machine="LS", locality=5)
    assert list(m.label_names) == ["5", "pullover"]
    expected = m.posterior_mean(x, 0.4, label=1).mean
    assert torch.equal(m.posterior_mean(x, 0.4, label="pullover").mean, expected)
    own = pi.ScoreMachine(named[kind], machine="LS", locality=5, label="pullover")
    assert own.label == 1
    assert torch.equal(own.posterior_mean(x, 0.4).mean, expected)
    assert torch.equal(m.score(x, 0.4, label="5"), m.score(x, 0.4, label=0))
    both = pi.sample(m, n=2, steps=4, label=["pullover", 0])
    assert both.settings["label"] == [1, 0]
    assert torch.equal(pi.sample(m, n=1, steps=4, label="pullover").images, both.images[:1])
    assert pi.sample(m, n=1, steps=2, label="pullover").settings["label"] == 1
    with pytest.raises(InputError, match="label: no label is called 'dress'; use one of 5, pullover"):
        m.posterior_mean(x, 0.4, label="dress")


def test_a_machine_other_than_that_of_the_store_knows_the_names(named):
    x = torch.randn(1, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    m = pi.denoiser("bbELS", named[0], label="pullover", locality=3)
    expected = pi.denoiser("bbELS", named[1], label="pullover", locality=3, estimator="exact")
    assert m.label_names == expected.label_names == ("5", "pullover")
    assert torch.equal(m.posterior_mean(x, 0.4).mean, expected.posterior_mean(x, 0.4).mean)


def test_names_of_labels_without_names_are_refused(real_images):
    m = pi.ScoreMachine(*real_images(12, 10, classes=(2, 5)), machine="LS", locality=5)
    with pytest.raises(InputError, match="no label is called 'dress'; give its number"):
        pi.sample(m, n=1, steps=2, label="dress")
