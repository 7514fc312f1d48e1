"""bfloat16 against float32 on this processor: measured, and said where it matters."""

import pytest
import torch

from learner.precision import bfloat16_gain, remark


@pytest.mark.parametrize(
    ("dtype", "gain", "said"),
    [
        (torch.bfloat16, 1.9, "computing in bfloat16, whose matrix products are 1.9 x as fast"),
        (torch.bfloat16, 0.4, "only 0.4 x as fast here as float32's: with learner.dtype=float32"),
        (torch.float32, 1.9, "learner.dtype=native rollout.dtype=native would use them"),
    ],
)
def test_what_would_be_faster_is_said(dtype, gain, said):
    line = remark(dtype, gain)
    assert line is not None and said in line and "\n" not in line


def test_nothing_is_said_where_float32_is_the_right_choice():
    assert remark(torch.float32, 1.0) is None


def test_the_gain_is_a_ratio_of_two_speeds():
    assert 0.001 < bfloat16_gain(8, 16, 32) < 1000
