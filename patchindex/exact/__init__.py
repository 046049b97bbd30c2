"""Exact engines: scans over every patch, behind one function."""

from patchindex.exact.choice import check_engine
from patchindex.exact.costs import expected_seconds
from patchindex.exact.cpu import load_kernel
from patchindex.exact.engine import scan, scan_parts
from patchindex.exact.heaviest import HeaviestPatches, heaviest
from patchindex.exact.request import ScoreRequest, TrajectoryCache
from patchindex.exact.shards import DeviceShards, Shards

__all__ = [
    "DeviceShards",
    "HeaviestPatches",
    "ScoreRequest",
    "Shards",
    "TrajectoryCache",
    "check_engine",
    "expected_seconds",
    "heaviest",
    "load_kernel",
    "scan",
    "scan_parts",
]
