"""Exact engines: scans over every patch, behind one function."""

from patchindex.exact.engine import scan

__all__ = ["scan"]
