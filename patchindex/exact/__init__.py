"""Exact engines: scans over every patch, behind one function."""

from patchindex.exact.torch import scan

__all__ = ["scan"]
