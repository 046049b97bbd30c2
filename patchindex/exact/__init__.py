"""Exact engines: scans over every patch, behind one function."""

from patchindex.exact.cpu import load_kernel
from patchindex.exact.engine import scan

__all__ = ["load_kernel", "scan"]
