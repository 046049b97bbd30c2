"""Compiled kernels: all numba code of the package, and nothing else."""
