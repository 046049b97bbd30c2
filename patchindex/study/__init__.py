"""Studies of accuracy: how near one set of images is to another."""

from patchindex.study.metrics import pearson_r, r2, rmse

__all__ = ["pearson_r", "r2", "rmse"]
