"""What both ends of a broadcast compute alike: hashes that see every change, and adapters that survive bfloat16."""

import pytest
import torch

from actors.tensors import BLOCK, checksum, dithered, merge_adapter


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


FACTOR = 0x9E3779B97F4A7C15


def signed(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def by_hand(words: list[int]) -> int:
    """The documented formula in plain integers, for a block."""
    mixed = [signed(FACTOR * word) for word in words]
    weights = [signed(FACTOR * (i + 1)) | 1 for i in range(len(words))]
    return sum((u ^ (u >> 32)) * weight for u, weight in zip(mixed, weights, strict=True)) % (1 << 64)


def test_a_hash_is_that_of_the_formula() -> None:
    words = [3, -5, 1 << 40]
    tensor = torch.tensor(words)
    assert checksum(tensor) == checksum(tensor.view(torch.int32)) == by_hand(words)
    assert checksum(torch.tensor([1, 0, 0, 0, 0, 0, 0, 0, 2], dtype=torch.uint8)) == by_hand([1, 2])
    assert checksum(torch.empty(0)) == by_hand([]) == 0


def test_a_hash_of_several_blocks_is_that_of_their_hashes() -> None:
    words = torch.arange(2 * BLOCK + 3)
    blocks = [signed(by_hand(block.tolist())) for block in words.split(BLOCK)]
    assert checksum(words) == by_hand(blocks) != checksum(words[:-3]) == by_hand(blocks[:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_hash_sees_permuted_rows_swapped_neighbours_and_a_constant(dtype: torch.dtype) -> None:
    tensor = noise(64, 48).to(dtype)
    seen = {checksum(tensor), checksum(tensor.roll(1, 0)), checksum(tensor[:, torch.randperm(48)]), checksum(-tensor)}
    swapped = tensor.clone()
    swapped[0, 0], swapped[0, 1] = tensor[0, 1], tensor[0, 0]
    ones, zeros = torch.ones(64, 48, dtype=dtype), torch.zeros(64, 48, dtype=dtype)
    seen |= {checksum(swapped), checksum(ones), checksum(zeros), checksum(ones[:32]), checksum(2 * ones)}
    assert len(seen) == 9


def test_a_hash_sees_where_a_single_one_stands() -> None:
    identity = torch.eye(512)  # a row of one: wherever it stands, all else is zero
    assert len({checksum(row) for row in identity} | {checksum(-row) for row in identity}) == 1024


def test_a_hash_is_the_same_however_the_tensor_lies_in_memory() -> None:
    tensor = noise(6, 5)
    assert checksum(tensor.T) == checksum(tensor.T.contiguous()) != checksum(tensor)
    assert checksum(noise(7, 5)[1:]) == checksum(noise(7, 5)[1:].clone())


def test_what_lies_on_the_grid_of_bfloat16_stays_as_it_is() -> None:
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 3.140625, -1e-30, float("inf"), float("-inf")])
    assert torch.equal(dithered(values, torch.bfloat16), values.bfloat16())
    grid = noise(300, 70).bfloat16()
    assert torch.equal(dithered(grid.float(), torch.bfloat16), grid)
    assert dithered(torch.tensor([float("nan")]), torch.bfloat16).isnan().all()


def test_a_value_between_two_grid_points_becomes_the_upper_as_often_as_it_is_nearer_to_it() -> None:
    step = 2.0**-7  # of bfloat16 between 1 and 2
    for share in (0.01, 0.25, 0.5, 0.9):
        for sign in (1.0, -1.0):
            rounded = sign * dithered(torch.full((10_000,), sign * (1 + share * step)), torch.bfloat16).float()
            assert set(rounded.tolist()) == {1.0, 1 + step}
            assert float((rounded > 1).float().mean()) == pytest.approx(share, abs=2e-3)


def test_rounding_is_a_function_of_the_values_and_their_place_alone() -> None:
    values = noise(100, 30)
    assert torch.equal(dithered(values, torch.bfloat16), dithered(values.clone(), torch.bfloat16))
    assert torch.equal(dithered(values.T, torch.bfloat16), dithered(values.T.contiguous(), torch.bfloat16))
    assert torch.equal(dithered(values, torch.float32), values)


@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2])
def test_an_update_far_below_a_grid_step_keeps_its_effect_on_average(size: float) -> None:
    """Rounded to the nearest, of an update of 0.01 % of the weights' size next to nothing is left."""
    base, lora_A, lora_B = noise(256, 512).bfloat16(), noise(8, 512, seed=1), noise(256, 8, seed=2)
    delta = lora_B @ lora_A
    lora_B = lora_B * (size / float(delta.std()))
    delta = lora_B @ lora_A
    changes = {
        "dithered": merge_adapter(base, lora_A, lora_B, scaling=1.0, transposed=False).float() - base.float(),
        "nearest": (base.float() + delta).bfloat16().float() - base.float(),
    }
    kept = {name: float((change * delta).sum() / (delta * delta).sum()) for name, change in changes.items()}
    assert kept["dithered"] == pytest.approx(1.0, abs=0.03 * (1e-4 / size) ** 0.5 + 0.005)
    assert kept["nearest"] < {1e-4: 0.3, 1e-3: 0.8, 1e-2: 1.01}[size]


def test_float32_weights_take_an_adapter_as_it_is() -> None:
    base, lora_A, lora_B = noise(6, 5), noise(2, 5, seed=1), noise(6, 2, seed=2)
    merged = merge_adapter(base, lora_A, lora_B, scaling=0.5, transposed=False)
    assert torch.equal(merged, base + (lora_B @ lora_A) * 0.5)
