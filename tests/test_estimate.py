"""What a run will ask of its GPUs: each figure computed by hand for a model of round sizes."""

import json
from pathlib import Path

import pytest

from orchestrator.cards import CARDS, GIB, Card
from orchestrator.config import Recipe
from orchestrator.estimate import memory, speed
from orchestrator.estimate.memory import PROCESS_BYTES, REDUCE_BUCKET_BYTES, Need
from orchestrator.estimate.shapes import SHAPES, Shape, adapter_parameters, model_shape
from orchestrator.recipes import load_recipe
from tests.tiny_models import make_tiny_policy

RECIPES = Path(__file__).parent.parent / "deploy" / "recipes"
H100 = CARDS["H100 80GB"]
SMALL = Shape(
    architecture="llama", parameters=1000, layers=2, hidden=8, intermediate=16, heads=4, kv_heads=2, head_dim=2,
    vocabulary=100,
)  # fmt: skip
ON_GPU = ("learner.num_gpus=0.5", "rollout.num_gpus=0.4", "loop.max_staleness=0", "rollout.colocated=true")


def recipe(*overrides: str, name: str = "miniature") -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml", list(overrides))


@pytest.mark.parametrize("model", [name for name, shape in SHAPES.items() if shape.architecture in ("llama", "qwen3")])
def test_the_table_holds_as_many_parameters_as_its_sizes_make(model: str) -> None:
    shape = SHAPES[model]
    layer = sum(inputs * outputs for inputs, outputs in shape.linears.values()) + 2 * shape.hidden
    layer += 2 * shape.head_dim * (shape.architecture == "qwen3")  # its norms of queries and keys
    tied = shape.hidden < 4096
    head = 0 if tied else 1 if "beaver" in model else shape.vocabulary
    assert shape.parameters == shape.layers * layer + shape.hidden * (1 + shape.vocabulary + head)


def test_a_folder_tells_its_own_shape(tmp_path: Path) -> None:
    shape = model_shape(str(make_tiny_policy(tmp_path / "policy", vocab=100)))
    assert shape is not None
    assert (shape.architecture, shape.layers, shape.hidden, shape.intermediate) == ("llama", 2, 64, 192)
    assert (shape.heads, shape.head_dim, shape.vocabulary) == (2, 32, 100)


@pytest.mark.parametrize("config", ["{}", "{oops", json.dumps({"model_type": "x", "hidden_size": "wide"})])
def test_a_shape_that_cannot_be_known_is_none(tmp_path: Path, config: str) -> None:
    make_tiny_policy(tmp_path / "policy", vocab=100)
    (tmp_path / "policy" / "config.json").write_text(config)
    assert model_shape(str(tmp_path / "policy")) is None
    assert model_shape("somebody/unheard-of") is None


def test_adapters_of_all_layers_are_counted_and_of_those_that_are_named() -> None:
    assert adapter_parameters(SHAPES["Qwen/Qwen3-8B"], 64, "all-linear") == 174_587_904
    assert adapter_parameters(SMALL, 3, ("q_proj", "down_proj")) == 2 * 3 * ((8 + 8) + (16 + 8))


@pytest.mark.parametrize(
    ("stage", "weights", "optimizer", "gradients"),
    [
        (0, 2000, 12_000, 4000),
        (1, 2000, 12_000 / 4, 4000 / 4),  # bfloat16 runs under stage 2 at least
        (2, 2000, 12_000 / 4, 4000 / 4),
        (3, 2000 / 4, 12_000 / 4, 4000 / 4),
    ],
)
def test_what_a_rank_keeps_is_sharded_by_its_stage(
    stage: int, weights: float, optimizer: float, gradients: float
) -> None:
    ranks = 1 if stage == 0 else 4
    shape = recipe(*ON_GPU, f"learner.zero_stage={stage}", f"learner.ranks={ranks}", f"rollout.engines={ranks}")
    rank = memory.rank_memory(shape, SMALL)
    assert (rank.weights, rank.reference, rank.optimizer) == (weights, weights, optimizer)
    assert rank.gradients == gradients + REDUCE_BUCKET_BYTES
    assert rank.kept == 2 * weights + optimizer


def test_under_adapters_they_alone_have_a_state_and_there_is_no_second_copy() -> None:
    rank = memory.rank_memory(recipe(*ON_GPU, "learner.lora={rank: 3}", "learner.zero_stage=2"), SMALL)
    trained = adapter_parameters(SMALL, 3, "all-linear")
    assert (rank.weights, rank.reference) == (2 * (1000 + trained), 0)
    assert (rank.optimizer, rank.gradients) == (12 * trained, 4 * trained + REDUCE_BUCKET_BYTES)
    assert rank.sent == 2 * trained
    whole = memory.rank_memory(recipe(*ON_GPU, "learner.lora={rank: 3}", "learner.broadcast=full"), SMALL)
    assert whole.sent == 2 * 1000


@pytest.mark.parametrize(("stage", "gradients"), [(1, 4000 / 4), (3, 0)])
def test_an_offloaded_optimizer_is_in_host_memory(stage: int, gradients: float) -> None:
    of = recipe(
        *ON_GPU, f"learner.zero_stage={stage}", "learner.ranks=4", "rollout.engines=4", "learner.offload_optimizer=true"
    )
    rank = memory.rank_memory(of, SMALL)
    assert (rank.optimizer, rank.offloaded) == (0, 20_000 / 4)
    assert rank.gradients == gradients + REDUCE_BUCKET_BYTES
    assert memory.host_memory(of, SMALL)["offloaded optimizer"] == 20_000


def test_on_cpu_weights_are_their_own_master_copy_unless_zero_makes_one() -> None:
    assert memory.rank_memory(recipe(), SMALL).kept == 1000 * (4 + 4 + 8)
    assert memory.rank_memory(recipe("learner.zero_stage=1"), SMALL).kept == 1000 * (4 + 4 + 4 + 8)


def test_a_method_that_combines_gradients_holds_one_for_each_objective() -> None:
    plain, combined = (memory.rank_memory(recipe(f"method={name}"), SMALL) for name in ("mi-epo", "raco"))
    assert combined.gradients - plain.gradients == 4 * 2 * 1000


def test_activations_are_of_all_layers_or_of_one_and_the_inputs_of_all() -> None:
    tokens = 8192  # of a micro-batch
    layer = 2 * 6 * 8 + 2 * 2 * 8 + 2 * (3 * 8 + 2 * 4) + 4 * 2 * 16
    assert memory.layer_activations(SMALL, 2, lora=False) == layer
    assert memory.layer_activations(SMALL, 2, lora=True) == layer + 3 * (5 * 8 + 8 + 16)
    assert memory.rank_memory(recipe(*ON_GPU), SMALL).activations == 2 * layer * tokens
    checkpointed = memory.rank_memory(recipe(*ON_GPU, "learner.gradient_checkpointing=true"), SMALL)
    assert checkpointed.activations == (2 * 2 * 8 + layer) * tokens
    assert checkpointed.logits == 1024 * 100 * 16
    short = memory.rank_memory(recipe(*ON_GPU, "learner.micro_batch_tokens=192"), SMALL)
    assert short.logits == 192 * 100 * 16, "no more rows than there are tokens"


def test_an_engine_holds_its_part_of_the_weights_and_of_the_cache() -> None:
    engine = memory.engine_memory(recipe("rollout.num_gpus=1", "rollout.tensor_parallel_size=2"), SMALL)
    assert (engine.weights, engine.sequence) == (1000, 2 * 2 * 2 * 2 * 2 / 2 * 64)
    assert engine.sequences == 128 * engine.sequence


def test_a_judge_holds_its_weights_in_its_own_dtype_and_a_function_nothing() -> None:
    helpful = recipe(name="helpful-qwen3-8b").objectives[0]
    assert memory.judge_memory(helpful).held == 2 * 774_031_360
    assert memory.judge_memory(recipe(name="hh-smollm2").objectives[1]) == Need()


def test_a_pair_and_its_judges_are_added_up_on_one_gpu_by_what_goes_on() -> None:
    judges = [f"objectives.{index}.num_gpus=0.05" for index in range(2)]
    judges += [
        f"objectives.{index}.scorer.model=somebody/unknown-{index}" for index in range(2)
    ]  # of which nothing is known
    asked = recipe(*ON_GPU, *judges, "rollout.gpu_memory_utilization=0.5")
    card = Card(name="x", memory=100 * GIB, flops=1e12, bandwidth=1e12)
    (load,) = memory.gpu_loads(asked, SMALL, card)
    rank = memory.rank_memory(asked, SMALL)
    assert (load.count, load.names) == (1, "rollout+learner, reward-helpfulness, reward-harmlessness")
    assert load.sampling == Need(held=50 * GIB + rank.kept + 4 * PROCESS_BYTES)
    assert load.learning.held == memory.ENGINE_WORK_BYTES + rank.kept + rank.gradients + 4 * PROCESS_BYTES
    assert load.learning.work == rank.activations + rank.logits


def test_actors_that_share_no_gpu_are_told_apart_and_alike_ones_together() -> None:
    loads = memory.gpu_loads(recipe(name="helpful-qwen3-8b"), SMALL, H100)
    assert [(load.count, load.names) for load in loads] == [
        (2, "rollout"),
        (4, "learner"),
        (1, "reward-helpfulness, reward-harmlessness"),
    ]


def test_what_sleeps_or_has_no_gpu_is_in_host_memory() -> None:
    host = memory.host_memory(recipe(*ON_GPU), SMALL)
    assert (host["sleeping engines"], host["ranks"], host["engines"]) == (2000, 0, 0)
    on_cpu = memory.host_memory(recipe("cluster.object_store_bytes=100000000"), SMALL)
    assert (on_cpu["sleeping engines"], on_cpu["object store"]) == (0, 100_000_000)
    assert on_cpu["ranks"] == 1000 * (16 + 4)
    served = memory.host_memory(recipe("objectives.0.num_gpus=0", name="helpful-qwen3-8b"), SMALL)
    assert served["judges"] == 2 * 774_031_360


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], None),
        (
            ["rollout.gpu_memory_utilization=0.85"],
            "rollout.gpu_memory_utilization must be at most 0.71 on a GPU of 79.6 GiB (rollout+learner, "
            "reward-helpfulness, reward-harmlessness: 22.8 GiB beside the engine), got 0.85",
        ),
        (
            ["rollout.gpu_memory_utilization=0.1"],
            "rollout.gpu_memory_utilization must be at least 0.22 on a GPU of 79.6 GiB (rollout+learner, "
            "reward-helpfulness, reward-harmlessness: 22.8 GiB beside the engine), got 0.1",
        ),
        (
            ["learner.lora=null"],
            "rollout+learner, reward-helpfulness, reward-harmlessness: must hold 160.3 GiB of a GPU (weights 15.3, "
            "reference 15.3, optimizer 91.5, gradients 31.4), H100 80GB has 79.6 GiB",
        ),
        (
            ["cluster.card=RTX 4090"],
            "rollout+learner, reward-helpfulness, reward-harmlessness: must hold 25.9 GiB of a GPU (weights 15.6, "
            "reference 0.0, optimizer 2.0, gradients 1.6), RTX 4090 has 24.0 GiB",
        ),
        (
            ["cluster.card=RTX 5090"],
            "rollout+learner, reward-helpfulness, reward-harmlessness: must hold 39.7 GiB of a GPU to sample at all, "
            "RTX 5090 has 31.8 GiB",
        ),
    ],
)
def test_what_no_gpu_can_hold_is_told_in_one_line(overrides: list[str], said: str | None) -> None:
    asked = recipe(*overrides, name="qwen3-8b-1gpu")
    assert memory.problems(asked, CARDS[asked.cluster.card]) == ([] if said is None else [said])


def test_nothing_is_refused_where_the_policy_is_not_known() -> None:
    assert memory.problems(recipe(*ON_GPU, "policy.model=somebody/unheard-of"), CARDS["L4"]) == []


def test_an_update_makes_two_products_for_each_parameter_token_and_pass() -> None:
    tokens = 32 * 2 * (18 + 2 * 32)  # a prompt once under each of its two vectors
    assert speed.learner_flops(recipe(), SMALL, 18) == 2 * 4 * 1000 * tokens  # forward, back twice, reference
    checkpointed = ("learner.gradient_checkpointing=true", "learner.lora={rank: 3}")
    assert speed.learner_flops(recipe(*checkpointed), SMALL, 18) == 2 * 4 * 1000 * tokens  # one back, one again
    assert speed.learner_flops(recipe("method=mo-odpo"), SMALL, 18) == 2 * 4 * 1000 * tokens / 2  # no w-


def test_a_token_takes_as_long_as_the_slowest_of_reading_multiplying_and_launching() -> None:
    asked = recipe("rollout.num_gpus=1", "rollout.max_num_seqs=32", "rollout.engines=2")
    engine = memory.engine_memory(asked, SMALL)
    reading = Card(name="x", memory=GIB, flops=1e30, bandwidth=1e3)
    read = (engine.weights + 32 * (16 + 16) / 64 * engine.sequence) / (0.6 * 1e3)
    seconds = speed.generate_s(asked, SMALL, reading, 16, prompts=32, responses=64)
    assert seconds == pytest.approx(32 * read)
    multiplying = Card(name="x", memory=GIB, flops=1e6, bandwidth=1e30)
    products = 2 * 1000 * 32 / (0.35 * 1e6)
    seconds = speed.generate_s(asked, SMALL, multiplying, 16, prompts=32, responses=64)
    assert seconds == pytest.approx(32 * products + 2 * 1000 * 16 * 32 / 2 / (0.35 * 1e6))
    launching = Card(name="x", memory=GIB, flops=1e30, bandwidth=1e30)
    assert speed.generate_s(asked, SMALL, launching, 16, prompts=32, responses=64) == pytest.approx(32 * 0.015)
    assert speed.generate_s(asked, SMALL, launching, 16, prompts=32, responses=65) == pytest.approx(2 * 32 * 0.015)


def test_judges_that_share_a_gpu_take_turns_and_one_on_cpu_has_its_cores() -> None:
    shared = recipe(name="helpful-qwen3-8b")
    flops = 2 * 774_031_360 * 128 * (172 + 128)
    assert speed.score_s(shared, H100, 172) == pytest.approx(2 * flops / (0.35 * 989e12))
    alone = recipe("objectives.0.num_gpus=0", "objectives.0.num_cpus=4", name="helpful-qwen3-8b")
    assert speed.score_s(alone, H100, 172) == pytest.approx(flops / (4 * 5e10))


@pytest.mark.parametrize(
    ("learn", "overlaps", "total", "said"),
    [
        (5.0, True, 5.0, "engines and judges wait 2.0 s of it for the learner"),
        (2.0, True, 3.0, "the learner waits 1.0 s of it for samples"),
        (5.0, False, 8.0, "one after the other: the learner waits 3.0 s, the engines 5.0 s"),
    ],
)
def test_a_step_is_as_long_as_what_cannot_overlap(learn: float, overlaps: bool, total: float, said: str) -> None:
    time = speed.StepTime(generate=3.0, score=1.0, learn=learn, sync=0.25, overlaps=overlaps)
    assert (time.total, time.verdict) == (total + 0.25, said)


def test_a_card_of_unknown_peaks_gives_no_time() -> None:
    unknown = Card(name="x", memory=80 * GIB, flops=None, bandwidth=None)
    assert speed.step_time(recipe(name="helpful-qwen3-8b"), SMALL, unknown, 100) is None
    assert speed.step_time(recipe(), SMALL, H100, 100) is None


@pytest.mark.parametrize("name", ["helpful-qwen3-8b", "helpful-qwen3-8b-3", "safety-alpaca7b"])
def test_the_paper_recipes_leave_no_learner_waiting_and_fit_their_gpus(name: str) -> None:
    asked = recipe(name=name)
    shape = model_shape(asked.policy.model)
    assert shape is not None
    time = speed.step_time(asked, shape, H100, 170)
    assert time is not None and time.sample < time.learn < 4.5
    assert memory.problems(asked, H100) == []
