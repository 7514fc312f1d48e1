"""The learner section of a recipe, the learning-rate schedule, and the records at the door."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from learner.config import LearnerConfig, learning_rate
from learner.types import WeightEntry, WeightManifest


@pytest.mark.parametrize(
    ("section", "place"),
    [
        ({"beta_C": 0.1}, "beta_C"),
        ({"zero_stage": 4}, "zero_stage"),
        ({"micro_batch_tokens": 0}, "micro_batch_tokens"),
        ({"adam_betas": [0.9, 1.0]}, "adam_betas.1"),
        ({"num_gpus": 2}, "num_gpus"),
        ({"lora": {"rank": 0}}, "lora.rank"),
        ({"lora": {"target_modules": []}}, "lora"),
        ({"schedule": "step"}, "schedule"),
    ],
)
def test_a_bad_section_is_refused_at_the_right_place(section: dict[str, object], place: str) -> None:
    with pytest.raises(ValidationError) as caught:
        LearnerConfig.model_validate(section)
    assert ".".join(map(str, caught.value.errors()[0]["loc"])).startswith(place)


def test_an_optimizer_is_offloaded_under_a_zero_stage_only() -> None:
    assert LearnerConfig(zero_stage=1, offload_optimizer=True).offload_optimizer
    with pytest.raises(ValidationError, match="zero_stage must be at least 1 with offload_optimizer, got 0"):
        LearnerConfig(offload_optimizer=True)


def test_config_and_records_import_without_torch() -> None:
    modules = "learner.config, learner.types, learner.examples, learner.methods"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def rates(**section: object) -> list[float]:
    config = LearnerConfig.model_validate({"learning_rate": 1.0, **section})
    return [learning_rate(config, step=step, total_steps=14) for step in range(15)]


def test_warm_up_rises_to_the_full_rate_then_a_line_falls_to_the_floor() -> None:
    values = rates(warmup_steps=4, schedule="linear", final_learning_rate_ratio=0.1)
    assert values[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert values[9] == pytest.approx(0.55)
    assert values[14] == pytest.approx(0.1)


def test_cosine_is_half_way_at_half_time_and_constant_stays() -> None:
    assert rates(schedule="cosine")[7] == pytest.approx(0.5)
    assert rates(schedule="cosine")[14] == pytest.approx(0.0)
    assert rates(schedule="constant", final_learning_rate_ratio=0.1) == [1.0] * 15


def test_rate_past_the_planned_end_stays_at_the_floor() -> None:
    config = LearnerConfig(learning_rate=1.0, final_learning_rate_ratio=0.2)
    assert learning_rate(config, step=99, total_steps=10) == pytest.approx(0.2)


def test_manifest_checksum_depends_on_names_values_and_order() -> None:
    first = WeightEntry(name="a", dtype="float32", shape=(2,), checksum=7)
    second = WeightEntry(name="b", dtype="float32", shape=(2,), checksum=8)

    def manifest(*entries: WeightEntry) -> int:
        return WeightManifest(policy_version=0, entries=entries, total_bytes=16).checksum

    assert manifest(first, second) == manifest(first, second)
    assert len({manifest(first, second), manifest(second, first), manifest(first), manifest(first, first)}) == 4
