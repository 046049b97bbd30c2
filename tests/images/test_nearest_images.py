"""Nearest training images, with and without shifts, against brute force in float64."""

import numpy as np
import pytest
import torch
from watched import linux_only, run_watched

from patchindex.errors import InputError
from patchindex.images.by_label import TrainingImages, to_unit
from patchindex.images.nearest import WORK_BYTES, nearest_images, shifts_within


def brute(x, training, shifts, leave_out=None):
    """Return distance, image and shift of the nearest training image of each x."""
    v = training.read(0, len(training)).transpose(0, 3, 1, 2) / 127.5 - 1
    found = []
    for row, image in enumerate(x.double().numpy()):
        best = (np.inf,)
        for n in range(len(v)):
            if leave_out is not None and n == int(leave_out[row]):
                continue
            for dy, dx in shifts:
                off = np.sqrt(np.mean((image - np.roll(v[n], (dy, dx), (1, 2))) ** 2))
                best = min(best, (off, n, dy, dx))
        found.append(best)
    return found


@pytest.mark.parametrize(("size", "channels"), [(14, 1), ((12, 15), 3)])
@pytest.mark.parametrize("most", [0, 2])
def test_nearest_images_are_those_of_brute_force(real_images, size, channels, most):
    images, labels = real_images(50, size, channels=channels)
    training = TrainingImages(images[:40], labels[:40])
    x = torch.from_numpy(images[40:45].transpose(0, 3, 1, 2) / 127.5 - 1).float()
    shifts = shifts_within(most, training.size)
    found = nearest_images(x, training, shifts, kept=4)
    for row, (distance, image, dy, dx) in enumerate(brute(x, training, shifts)):
        assert float(found.distance[row, 0]) == pytest.approx(distance, rel=1e-6)  # x is float32
        assert int(found.image[row, 0]) == training.source_ids[image]
        assert found.shift[row, 0].tolist() == [dy, dx]
    assert (found.distance.diff(dim=1) >= 0).all()


def test_little_memory_gives_the_same(real_images):
    images, _ = real_images(60, 14)
    training = TrainingImages(images[:50])
    x = torch.from_numpy(images[50:].transpose(0, 3, 1, 2) / 127.5 - 1).float()
    shifts = shifts_within(1, training.size)
    one, *others = (nearest_images(x, training, shifts, kept=3, memory=size) for size in (1 << 26, 20_000, 1))
    for two in others:
        assert torch.equal(one.image, two.image)
        assert torch.equal(one.distance, two.distance)
        assert torch.equal(one.shift, two.shift)


def near_copies():
    """500 images that differ from one image by a grey level of one pixel each, and its copy at number 250."""
    rng = np.random.default_rng(3)
    image = rng.integers(1, 255, (16, 16, 3), np.uint8)
    others = np.repeat(image[None], 501, 0)
    for n, pixel in enumerate(rng.choice(image.size, 501, replace=False)):
        others[n].reshape(-1)[pixel] += n != 250
    return image, others


def test_a_copy_among_images_that_float32_cannot_tell_apart():
    """All 500 others are equally far."""
    image, others = near_copies()
    x = to_unit(torch.from_numpy(image[None])).permute(0, 3, 1, 2)
    for labels in (None, np.arange(501) % 3):
        found = nearest_images(x, TrainingImages(others, labels), kept=4)
        assert found.distance[0, 0] == 0
        assert found.image.tolist() == [[250, 0, 1, 2]]  # among equals, the first of the source
        assert found.distance[0, 1:].numpy() == pytest.approx(1 / 127.5 / image.size**0.5, rel=1e-5)


def test_shifts_that_float32_cannot_tell_apart():
    image, others = near_copies()
    moved = np.roll(image, (1, -2), (0, 1))
    x = to_unit(torch.from_numpy(moved[None])).permute(0, 3, 1, 2)
    found = nearest_images(x, TrainingImages(others), shifts_within(2, (16, 16)), kept=2)
    assert found.image.tolist() == [[250, 0]]
    assert found.shift.tolist() == [[[1, -2]] * 2]
    assert found.distance[0, 0] == 0


@pytest.mark.parametrize("scale", [0.5, 30, 1e3, 1e5, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_queries_and_training_images_that_are_nearly_equal(scale, dtype):
    """The products of float32 are off by more than the distances differ by."""
    rng = np.random.default_rng(0)
    images = rng.integers(200, 203, (60, 7, 6), np.uint8)
    x = torch.from_numpy(rng.standard_normal((20, 1, 7, 6)) * scale).to(dtype)
    shifts = shifts_within(1, (7, 6))
    v = to_unit(torch.from_numpy(images), dtype).double().numpy()
    for memory in (1, 1 << 26):
        found = nearest_images(x, TrainingImages(images), shifts, kept=3, memory=memory)
        for row, query in enumerate(x[:, 0].double().numpy()):
            # Squares without the query's, which are the same for all and hide the last digits.
            each = [[(w * w - 2 * w * query).sum() for w in np.roll(v, s, (1, 2))] for s in shifts]
            nearest = np.argsort(np.min(each, 0), kind="stable")[:3]
            assert found.image[row].tolist() == nearest.tolist()
            best = [shifts[n] for n in np.argmin(each, 0)[nearest]]
            assert [tuple(shift) for shift in found.shift[row].tolist()] == best


@pytest.mark.parametrize("count", [1, 2])
def test_the_first_of_equal_images_comes_first_in_any_batch(count):
    """A sum of 49 152 numbers is shared by threads, and its order then depends on the batch."""
    rng = np.random.default_rng(1)
    copies = np.repeat(rng.integers(0, 256, (1, 128, 128, 3), np.uint8), 43, 0)
    x = torch.from_numpy(rng.uniform(-1, 1, (6, 3, 128, 128)))
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        for rows in (x, x[:1], x[1:2], x[2:3], x[3:4]):
            assert nearest_images(rows, TrainingImages(copies), kept=3).image.tolist() == [[0, 1, 2]] * len(
                rows
            )
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_of_equal_shifts_is_taken(dtype):
    """Shifts of an image of one colour are equal, and so are some shifts of stripes."""
    images = np.zeros((3, 12, 12), np.uint8)
    images[1], images[2, :, ::4] = 255, 200
    x = torch.from_numpy(np.random.default_rng(2).uniform(-1, 1, (40, 1, 12, 12))).to(dtype)
    shifts = shifts_within(4, (12, 12))
    found = nearest_images(x, TrainingImages(images), shifts, kept=3)
    plain = nearest_images(x, TrainingImages(images), kept=3)
    one_colour = found.image < 2
    assert (found.shift[one_colour] == 0).all()
    assert (found.shift[~one_colour][:, 0] == 0).all()
    assert torch.equal(
        found.distance[one_colour].sort().values, plain.distance[plain.image < 2].sort().values
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e13])
def test_queries_that_no_distance_can_be_computed_of_are_refused(value):
    x = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    x[1, 0, 2, 2] = value
    with pytest.raises(InputError, match="images: must be finite, and at most 1e12"):
        nearest_images(x, TrainingImages(np.zeros((3, 4, 4), np.uint8)))


def test_one_image_has_no_other(real_images):
    images, _ = real_images(1, 14)
    x = torch.zeros(1, 1, 14, 14)
    with pytest.raises(InputError, match="training: there is one image; give at least two"):
        nearest_images(x, TrainingImages(images), leave_out=torch.tensor([0]))


MEMORY = """
import numpy as np, torch
from patchindex.images.by_label import TrainingImages
from patchindex.images.nearest import nearest_images, shifts_within

images = np.random.default_rng(0).integers(0, 256, (20, 256, 256, 3), np.uint8)
x = torch.zeros(1, 3, 256, 256)
nearest_images(x, TrainingImages(images[:2]))  # loads what is needed
print(rise(lambda: nearest_images(x, TrainingImages(images), shifts_within(4, (256, 256)))))
"""


@linux_only
def test_memory_stays_within_its_budget():
    assert (96 << 20) < run_watched(MEMORY) < WORK_BYTES  # 127 MB are for the shifted images alone


def test_there_are_no_more_images_than_training_images(real_images):
    images, _ = real_images(3, 14)
    x = torch.from_numpy(images[:2].transpose(0, 3, 1, 2) / 127.5 - 1)
    found = nearest_images(x, TrainingImages(images), shifts_within(1, (14, 14)), kept=5)
    assert sorted(found.image[0].tolist()) == [0, 1, 2]
    own = torch.arange(2)
    found = nearest_images(x, TrainingImages(images), kept=5, leave_out=own)
    assert [sorted(row) for row in found.image.tolist()] == [[1, 2], [0, 2]]


def test_an_image_is_left_out_of_its_own_neighbours(real_images):
    images, labels = real_images(30, 14)
    training = TrainingImages(images, labels)  # in another order than the source
    numbers = torch.arange(0, 30, 4)
    x = torch.from_numpy(images[numbers] / 127.5 - 1).permute(0, 3, 1, 2).float()
    shifts = shifts_within(1, training.size)
    assert nearest_images(x, training, shifts).image[:, 0].tolist() == numbers.tolist()
    found = nearest_images(x, training, shifts, kept=4, leave_out=numbers)
    assert (found.image != numbers[:, None]).all()
    for row, expected in enumerate(brute(x, training, shifts, training.numbers_of(numbers.numpy()))):
        assert float(found.distance[row, 0]) == pytest.approx(expected[0], rel=1e-6)


def test_every_shift_is_tried_once():
    for most, size in ((0, (5, 5)), (1, (5, 6)), (2, (5, 6)), (9, (5, 6)), (3, (8, 6))):
        shifts = [(dy % size[0], dx % size[1]) for dy, dx in shifts_within(most, size)]
        assert len(set(shifts)) == len(shifts)
        assert len(shifts) == np.prod([min(2 * most + 1, n) for n in size])


def test_progress_grows_to_one(real_images):
    images, _ = real_images(30, 14)
    shares = []
    x = torch.from_numpy(images[:4].transpose(0, 3, 1, 2) / 127.5 - 1).float()
    nearest_images(
        x,
        TrainingImages(images),
        [(0, 0)],
        memory=20_000,
        progress=lambda _, done, of: shares.append(done / of),
    )
    assert shares == sorted(shares)
    assert shares[-1] == 1
