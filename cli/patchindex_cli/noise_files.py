"""Files that `patchindex sample` reads: noise to start from, and masks of known pixels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchindex.errors import InputError, SourceNotFoundError

if TYPE_CHECKING:
    import numpy as np

KEY = "x_T"  # of the noise in a file that holds several arrays
SUFFIXES = (".npz", ".npy", ".h5", ".hdf5", ".safetensors", ".pt", ".pth")


def read_noise(path: Path) -> np.ndarray:
    """Read the noise to start from: an array of floats (n, C, H, W).

    `.npy`; `.npz`, `.h5` and `.safetensors` with the array `x_T`; `.pt` with a tensor, or with a dict that
    has `x_T`, read by `torch.load(weights_only=True)`, which runs no code.
    """
    import numpy as np

    if not path.is_file():
        raise SourceNotFoundError("no such file", where=path, remedy="check --x-t")
    readers = {".npz": _npz, ".npy": _npy, ".h5": _hdf5, ".hdf5": _hdf5, ".safetensors": _safetensors}
    readers |= {".pt": _torch, ".pth": _torch}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise _refused(path, f"is no file of noise; known: {', '.join(SUFFIXES)}", "save the noise as .npy")
    found = reader(path)
    if not isinstance(found, np.ndarray) or found.dtype.kind != "f":
        kind = found.dtype if isinstance(found, np.ndarray) else type(found).__name__
        raise _refused(path, f"holds {kind}, not floats", "save float32 noise of shape (n, C, H, W)")
    if found.ndim != 4:
        raise _refused(path, f"holds an array of shape {found.shape}", "save noise of shape (n, C, H, W)")
    return found


def read_mask(source: str) -> np.ndarray:
    """Read a mask of known pixels, bool (H, W) or (n, H, W): white pixels of images are known."""
    import patchindex

    images = patchindex.open_images(source, grayscale=True)
    known = images.read(slice(0, len(images)))[..., 0] > 127
    return known[0] if len(known) == 1 else known


def _npz(path: Path) -> np.ndarray:
    from patchindex.images.formats.npz import read_arrays

    return read_arrays(path, required=KEY)[KEY]


def _npy(path: Path) -> np.ndarray:
    import numpy as np

    from patchindex.images.formats.npz import read_array

    return np.array(read_array(path))


def _hdf5(path: Path) -> np.ndarray:
    import h5py
    import numpy as np

    from patchindex.images.hdf5_data import DeflatedChunks, check_data

    try:
        with h5py.File(path, "r") as file:
            data = file[KEY] if isinstance(file.get(KEY, getlink=True), h5py.HardLink) else None
            if not isinstance(data, h5py.Dataset):
                raise _refused(path, f"has no dataset {KEY} of its own", f"save the noise as {KEY}")
            check_data(data, path)
            DeflatedChunks(data, f"{path}::{KEY}").check(data, slice(0, data.shape[0] if data.shape else 1))
            return np.asarray(data[()])
    except InputError:  # a ValueError, too
        raise
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise _refused(path, f"cannot be read ({_line(error)})", "save it again") from None


def _safetensors(path: Path) -> np.ndarray:
    import numpy as np
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            if KEY not in file.keys():  # noqa: SIM118  (no dict)
                raise _refused(path, f"has no tensor {KEY}", f"save the noise as {KEY}")
            return np.asarray(file.get_tensor(KEY))
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise _refused(path, f"cannot be read ({_line(error)})", "save it again") from None


def _torch(path: Path) -> Any:
    import pickle
    import zipfile

    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        LookupError,
    ) as error:
        what = f"is no file of plain tensors ({_line(error)})"
        raise _refused(path, what, "save the noise alone: torch.save(x_T, file)") from None
    found = found.get(KEY) if isinstance(found, dict) else found
    if not isinstance(found, torch.Tensor):
        raise _refused(path, f"has no tensor {KEY}", "save the noise alone: torch.save(x_T, file)")
    return found.detach().float().numpy()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _refused(path: Path, what: str, remedy: str) -> InputError:
    return InputError(what, where=path, remedy=remedy)
