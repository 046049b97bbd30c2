"""Studies: estimates against exact scores, and analytic denoisers against trained networks."""

from patchindex.study.compare import Study, compare
from patchindex.study.metrics import accuracy, pearson_r, r2, rmse
from patchindex.study.theory import TheoryOptions, theory
from patchindex.study.theory_results import Theory

__all__ = ["Study", "Theory", "TheoryOptions", "accuracy", "compare", "pearson_r", "r2", "rmse", "theory"]
