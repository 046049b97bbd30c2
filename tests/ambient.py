"""Settings of the program around a computation, which its result may not depend on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def default_dtype() -> Iterator[None]:
    """Make float64 torch's default type inside the block."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
