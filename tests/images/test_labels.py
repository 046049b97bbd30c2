import numpy as np
import pytest
import torch

from patchindex.images.labels import as_labels


@pytest.mark.parametrize(
    "values",
    [
        [0, 2, 1],
        (0, 2, 1),
        range(3),
        np.array([0, 2, 1], np.uint8),
        np.array([0, 2, 1], ">i4"),
        np.array([0.0, 2.0, 1.0], np.float32),
        np.array([2**63 - 2**12] * 3, np.uint64),
        torch.tensor([0, 2, 1]),
    ],
)
def test_integers_of_any_kind_become_int64(values: object) -> None:
    labels = as_labels(values, 3)
    assert labels.dtype == np.int64
    assert labels.shape == (3,)
    assert labels.tolist() == [int(v) for v in values]


def test_the_result_is_a_copy() -> None:
    values = np.arange(3)
    as_labels(values, 3)[0] = 9
    assert values[0] == 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1, 2], ["2 labels for 3 images"]),
        ([[1], [2], [3]], ["shape (3, 1)"]),
        ([[1], [2, 3]], ["cannot be read"]),
        ([0.5, 1.0, 2.0], ["label 0 is 0.5"]),
        ([0.0, np.nan, 2.0], ["label 1 is nan"]),
        ([0.0, 1e300, 2.0], ["label 1"]),
        ([0, 1, 2**64 - 1], ["label 2"]),
        (["cat", "dog", "cat"], ["dtype <U3"]),
        ([True, False, True], ["dtype bool"]),
        ([1, None, 2], ["dtype object"]),
    ],
)
def test_anything_else_is_refused(values: object, words: list[str], refused) -> None:
    with refused("file.npy", *words):
        as_labels(values, 3, where="file.npy")
