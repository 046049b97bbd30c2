"""Random numbers that depend on a seed and on a key, and on nothing else."""

from __future__ import annotations

import numpy as np

__all__ = ["random_stream"]

WORD = 1 << 32  # NumPy makes a seed of words of 32 bits


def random_stream(seed: int, *key: int) -> np.random.Generator:
    """Return the random generator of a seed for a key, such as the number of an image.

    With a seed below 2^32, NumPy adds zeros to less than four numbers: keys that differ only in zeros at the
    end may have the same generator.

    >>> bool(random_stream(0, 1).random() == random_stream(2**32, 0).random())
    False
    """
    if seed < WORD:
        return np.random.default_rng([seed, *key])
    # In one list, the second word of a large seed is the same as the first number of a key.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
