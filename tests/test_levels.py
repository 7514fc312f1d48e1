"""Tokens that mean numbers start in order."""

import torch

from orchestrator.tasks.fitting.models import put_levels_on_a_line


def levels(**stds):
    embedding = torch.zeros(20, 8)
    put_levels_on_a_line(embedding, [3, 5, 4, 9, 7], generator=torch.Generator().manual_seed(0), **stds)
    return embedding


def test_without_noise_the_levels_lie_evenly_from_minus_v_to_v():
    rows = levels(direction_std=1, noise_std=0)[[3, 5, 4, 9, 7]]
    torch.testing.assert_close(rows, torch.tensor([-1, -0.5, 0, 0.5, 1])[:, None] * rows[-1])
    assert rows[-1].norm() > 1


def test_a_centre_is_shared_by_all_levels_and_other_rows_stay():
    embedding = levels(center_std=1, direction_std=1, noise_std=0)
    rows = embedding[[3, 5, 4, 9, 7]]
    torch.testing.assert_close(rows[0] + rows[4], 2 * rows[2])
    assert rows[2].norm() > 1
    assert embedding[[0, 1, 2, 6, 8]].count_nonzero() == 0
