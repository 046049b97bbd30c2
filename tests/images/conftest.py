from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from patchindex.errors import InputError

DATA = Path(__file__).parents[2] / "data" / "fashion_mnist_6k.npz"


@pytest.fixture(scope="session")
def fashion() -> tuple[np.ndarray, np.ndarray]:
    """Real images (6000, 28, 28) uint8 and their labels."""
    with np.load(DATA) as archive:
        return archive["images"], archive["labels"].astype(np.int64)


@pytest.fixture
def gray(fashion: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return fashion[0][:20].copy()


@pytest.fixture
def rgb(fashion: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Colour images, their channels three different real images."""
    return np.stack([fashion[0][0:20], fashion[0][20:40], fashion[0][40:60]], axis=-1)


@pytest.fixture
def labels(fashion: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return fashion[1][:20].copy()


@pytest.fixture
def refused() -> Callable:
    """An InputError in one line that holds the words given, among them file and remedy."""

    @contextmanager
    def check(*words: object, error: type[InputError] = InputError) -> Iterator[None]:
        with pytest.raises(error) as caught:
            yield
        message = str(caught.value)
        assert "\n" not in message
        assert caught.value.exit_code == 2
        assert caught.value.remedy, message
        assert caught.value.where or caught.value.parameter, message
        for word in words:
            assert str(word) in message, (word, message)

    return check
