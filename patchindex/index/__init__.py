"""The patch index as it is read: scales, inverted lists, FAISS files, verification."""

from patchindex.index.patch_index import PatchIndex, open_index
from patchindex.index.scale import ScaleIndex
from patchindex.index.verify import Report, verify

__all__ = ["PatchIndex", "Report", "ScaleIndex", "open_index", "verify"]
