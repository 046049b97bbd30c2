"""Products in full float32, whatever the process allows."""

from __future__ import annotations

import pytest
import torch

from patchindex.runtime import full_precision

matmul = torch.backends.cuda.matmul
pytestmark = pytest.mark.skipif(not hasattr(matmul, "fp32_precision"), reason="torch before 2.9")


@pytest.fixture(autouse=True)
def _as_it_was():
    before = matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
    yield
    matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision = before


@pytest.mark.parametrize("allowed", ["tf32", "ieee"])
def test_tf32_is_off_inside_and_back_after(allowed):
    matmul.fp32_precision = allowed
    with full_precision():
        assert matmul.fp32_precision == "ieee"
    assert matmul.fp32_precision == allowed


def test_overlapping_blocks_restore_the_setting_once():
    """One is entered, another is entered, the first is left: the other still multiplies exactly."""
    matmul.fp32_precision = "tf32"
    first, second = full_precision(), full_precision()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert matmul.fp32_precision == "ieee"
    second.__exit__(None, None, None)
    assert matmul.fp32_precision == "tf32"


def test_an_error_inside_restores_the_setting():
    matmul.fp32_precision = "tf32"
    with pytest.raises(ZeroDivisionError), full_precision():
        raise ZeroDivisionError
    assert matmul.fp32_precision == "tf32"
