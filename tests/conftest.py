from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# Read when torch and FAISS are imported. A worker has as many threads as there are cores, and by default
# OpenMP lets a thread that waits use its core, which the other workers need.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import brute
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

import patchindex as pi

ROOT = Path(__file__).parents[1]

# Read when Triton is first imported: the kernels of a GPU run in NumPy where there is none.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Machines differ in speed. The default draws the same cases in every run; `--hypothesis-profile long` others.
settings.register_profile(
    "short",
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.target],  # a failing case is as small as it is drawn
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "long", settings.get_profile("short"), max_examples=5000, derandomize=False, phases=list(Phase)
)
settings.load_profile("short")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Let draws of torch's global generator depend on the test, and not on the tests before it."""
    torch.manual_seed(0)


RealImages = Callable[..., tuple[np.ndarray, np.ndarray]]


def find_shared(name: str) -> Path:
    """Return a file of the folder shared/ beside or inside the repository, which may be absent."""
    return next(
        (p for p in (ROOT.parent / "shared" / name, ROOT / "shared" / name) if p.is_file()), Path(name)
    )


@pytest.fixture(scope="session")
def shared_file() -> Callable[[str], Path]:
    """Look up a file in shared/; skip the test when the file is absent."""

    def find(name: str) -> Path:
        path = find_shared(name)
        if not path.is_file():
            pytest.skip(f"shared/{name} is not here")
        return path

    return find


@pytest.fixture(scope="session")
def real_images() -> RealImages:
    """Fashion-MNIST, cropped at the centre: `real_images(n, size)` gives uint8 (n, size, size, C), labels."""
    with np.load(ROOT / "data" / "fashion_mnist_6k.npz") as archive:
        everything, all_labels = archive["images"], archive["labels"].astype(np.int64)

    def take(
        n: int,
        size: int | tuple[int, int],
        *,
        channels: int = 1,
        classes: tuple[int, ...] = (),
        skip: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.flatnonzero(np.isin(all_labels, classes)) if classes else np.arange(len(all_labels))
        height, width = (size, size) if isinstance(size, int) else size
        top, left = (28 - height) // 2, (28 - width) // 2
        # Colour images have three different real images as their channels.
        planes = [
            everything[np.roll(chosen, -37 * c)[skip : skip + n], top : top + height, left : left + width]
            for c in range(channels)
        ]
        return np.stack(planes, -1), all_labels[chosen[skip : skip + n]]

    return take


@pytest.fixture(scope="session")
def labelled(real_images: RealImages) -> tuple[np.ndarray, np.ndarray]:
    """Forty real images of 14 x 14 of three classes, not in label order, and their labels."""
    images, labels = real_images(40, 14, classes=(1, 4, 9))
    assert (labels[1:] < labels[:-1]).any()
    return images, labels


@pytest.fixture(scope="session")
def held_out(real_images: RealImages) -> Callable[[float], torch.Tensor]:
    """`held_out(t)`: two real images that are not among the forty, with the noise of time t."""
    return lambda t: torch.from_numpy(brute.noisy(real_images(2, 14, skip=900)[0], t))


@pytest.fixture(scope="session", params=["ELS", "ELS-wrapped", "bbELS"])
def store(
    request: pytest.FixtureRequest,
    labelled: tuple[np.ndarray, np.ndarray],
    tmp_path_factory: pytest.TempPathFactory,
) -> pi.PatchIndex:
    """A finished store of the forty images for each machine that has an index: scales 3 and 5."""
    images, labels = labelled
    return pi.build_index(
        images,
        tmp_path_factory.mktemp("stores") / f"{request.param}.zarr",
        scales=(3, 5),
        labels=labels,
        lists=150,  # short ones, as far apart as those of large stores are
        **brute.settings_of(request.param),
    )
