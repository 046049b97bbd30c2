from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

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
def write_pictures() -> Callable[..., Path]:
    """`write_pictures(root, images, names=None)` saves images as files, by default 000.png, 001.png, ..."""

    def write(root: Path, images: np.ndarray, names: list[str] | None = None) -> Path:
        for name, image in zip(names or [f"{i:03}.png" for i in range(len(images))], images, strict=True):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / name)
        return root

    return write


@pytest.fixture
def write_metadata() -> Callable[..., None]:
    """`write_metadata(folder, zarr_format=3, **changes)` writes images in zarr with changed metadata."""

    def write(folder: Path, zarr_format: int = 3, **changes: object) -> None:
        images = np.full((20, 28, 28), 7, np.uint8)
        zarr.create_array(str(folder), data=images, chunks=(5, 28, 28), zarr_format=zarr_format)
        path = folder / ("zarr.json" if zarr_format == 3 else ".zarray")
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return write


@pytest.fixture
def deadline() -> Iterator[None]:
    """End a test that hangs, by an error after a minute."""

    def stop(*_: object) -> None:
        raise TimeoutError("the test hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def refused() -> Callable:
    """Expect an InputError of one line that has a remedy and holds the given words."""

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
