"""Studies of accuracy: how close estimates, and the images drawn with them, are to exact ones."""

from patchindex.study.compare import Study, compare
from patchindex.study.metrics import accuracy, pearson_r, r2, rmse

__all__ = ["Study", "accuracy", "compare", "pearson_r", "r2", "rmse"]
