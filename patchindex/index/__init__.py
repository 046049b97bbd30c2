"""The patch index: built once, stored with zarr, searched with FAISS."""

from patchindex.index.build import build_index
from patchindex.index.extend import add_scales, append, plan_scales
from patchindex.index.plan import BuildPlan, ScalePlan, parse_memory, plan_build
from patchindex.index.scale import ScaleIndex
from patchindex.index.store import PatchIndex, open_index
from patchindex.index.verify import Report, verify
from patchindex.index.workplace import free_bytes

__all__ = [
    "BuildPlan",
    "PatchIndex",
    "Report",
    "ScaleIndex",
    "ScalePlan",
    "add_scales",
    "append",
    "build_index",
    "free_bytes",
    "open_index",
    "parse_memory",
    "plan_build",
    "plan_scales",
    "verify",
]
