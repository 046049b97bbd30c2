"""Studies of accuracy: how near estimates and images are to exact ones."""

from patchindex.study.accuracy import accuracy
from patchindex.study.compare import Study, compare
from patchindex.study.metrics import pearson_r, r2, rmse

__all__ = ["Study", "accuracy", "compare", "pearson_r", "r2", "rmse"]
