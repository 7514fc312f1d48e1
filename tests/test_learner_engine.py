"""The DeepSpeed engine without Ray: against a plain torch loop, across ZeRO stages and ranks, and across a restart."""

import json
import math
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_engines import (
    BETAS,
    LORA,
    SETTINGS,
    MakeEngine,
    largest_difference,
    new_engine,
    train,
    update,
    weights_of,
)
from learner_ranks import distinct_tokens, make_batch, method, pair_example, run_ranks
from safetensors import safe_open
from torch import Tensor

from learner.config import LearnerConfig
from learner.engine import LearnerEngine
from learner.examples import Batch, Example
from learner.losses import mi_epo_loss
from learner.methods.grpo import Advantages
from learner.methods.mo_odpo import PairTargets
from learner.types import LearnerError, PoisonedUpdateError, StepReport

STEPS = 3


def plain_torch(model: str, batches: list[Batch]) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """The same optimizer steps written the obvious way: one sequence at a time, whole logits, no DeepSpeed."""
    from transformers import AutoModelForCausalLM

    policy, reference = (AutoModelForCausalLM.from_pretrained(model) for _ in range(2))
    optimizer = torch.optim.AdamW(policy.parameters(), betas=(0.9, 0.999), weight_decay=0.1)

    def logratio(prompt: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
        input_ids = torch.tensor([[*prompt, *response]])
        logprobs = [
            causal_lm(input_ids=input_ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            for causal_lm in (policy, reference)
        ]
        target = torch.tensor(response)[:, None]
        return (logprobs[0] - logprobs[1].detach()).gather(-1, target).sum()

    history = []
    for step, batch in enumerate(batches):
        rate = 1e-3 * (0.5 if step == 0 else 1 - (step - 2) / 8 if step > 2 else 1.0)
        for parameters in optimizer.param_groups:
            parameters["lr"] = rate
        pairs = [(example, pair) for example in batch.examples for pair in example.targets.responses]
        positive, *negative = (
            torch.stack(
                [torch.stack([logratio(each.prompts[m], each.responses[j]) for j in pair]) for each, pair in pairs]
            )
            for m in range(len(batch.examples[0].prompts))
        )
        weights = torch.tensor(np.concatenate([each.targets.weight.sum(1) for each in batch.examples])).float()
        share = torch.tensor([1 / len(each.targets.responses) for each, _ in pairs])
        output = mi_epo_loss(positive, torch.stack(negative), *weights.T, **BETAS, prompt_share=share)
        optimizer.zero_grad()
        output.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        optimizer.step()
        metrics = {name: float(value) for name, value in output.metrics.items()}
        history.append({**metrics, "grad_norm": float(norm), "learning_rate": rate})
    return history, {name: parameter.detach() for name, parameter in policy.named_parameters()}


def test_steps_equal_a_plain_torch_loop_when_the_last_micro_batch_is_short(make_engine: MakeEngine, model: str) -> None:
    """5 pairs in micro-batches of 2: the mean must be over 5, not over three micro-batch means."""
    expected, expected_weights = plain_torch(model, [make_batch(step, 5) for step in range(STEPS)])
    engine = make_engine()
    reports = train(engine, range(STEPS))
    for report, metrics in zip(reports, expected, strict=True):
        assert report.metrics == pytest.approx(metrics, abs=2e-5, rel=1e-4)
    assert largest_difference(weights_of(engine), expected_weights) < 2e-5
    assert reports[0].metrics["loss_identifiability"] == pytest.approx(math.log(2), abs=1e-6)
    assert reports[0].learner_tokens == distinct_tokens(make_batch(0, 5))


def test_a_model_that_computes_no_trees_passes_every_response_whole_and_says_so(
    make_engine: MakeEngine, model: str, tmp_path: Path
) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    plain = shutil.copytree(model, tmp_path / "bloom")
    (plain / "model.safetensors").unlink()
    sizes = {"vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 2}
    BloomForCausalLM(BloomConfig(**sizes, hidden_dropout=0.0)).save_pretrained(plain)
    engine = new_engine(str(plain))
    report = update(engine, make_batch(0, 5))
    assert [remark.split(":")[0] for remark in engine.remarks()] == ["BloomForCausalLM computes no trees of sequences"]
    assert report.learner_tokens == sum(
        2 * sum(map(len, each.responses)) - 4 + 2 * sum(map(len, each.prompts)) for each in make_batch(0, 5).examples
    )
    assert make_engine().remarks() == ()


def test_length_normalised_log_ratios_are_means_over_response_tokens(make_engine: MakeEngine) -> None:
    whole, per_token = (
        make_engine(by=method(beta_c=0.3, beta_w=0, length_normalized=normalized)) for normalized in (False, True)
    )
    for engine in (whole, per_token):  # one step apart from the reference, the same for both
        engine.policy.load_state_dict({k: v * 1.05 for k, v in engine.policy.state_dict().items()})
    batch = make_batch(0, 5)
    prompts = [example.prompts[0] for example in batch.examples for _ in example.responses]
    responses = [response for example in batch.examples for response in example.responses]
    ratios = [
        [a - b for a, b in zip(policy, reference, strict=True)]
        for policy, reference in zip(
            whole.token_logprobs(prompts, responses),
            whole.token_logprobs(prompts, responses, reference=True),
            strict=True,
        )
    ]
    reports = [update(engine, batch).metrics["logratio_mean"] for engine in (whole, per_token)]
    assert reports[0] == pytest.approx(sum(map(sum, ratios)) / len(ratios), abs=1e-5)
    assert reports[1] == pytest.approx(sum(sum(r) / len(r) for r in ratios) / len(ratios), abs=1e-5)


def two_pairs_of_three(first: Example, second: Example) -> Example:
    """Three responses of one prompt in two pairs, which share the middle one."""
    weight = np.concatenate([first.targets.weight, second.targets.weight])
    return Example(
        prompts=first.prompts,
        responses=(*first.responses, second.responses[0]),
        targets=PairTargets(responses=((0, 1), (1, 2)), weight=weight),
        preference=first.preference,
    )


def test_steps_with_several_w_minus_and_prompts_of_several_pairs_equal_a_plain_torch_loop(
    make_engine: MakeEngine, model: str
) -> None:
    """Three prompts with 2, 2 and 1 pairs in micro-batches of 2: the mean must be over 3."""
    batches = []
    for step in range(STEPS):
        first, second, third, fourth, fifth = make_batch(step, 5, negatives=3).examples
        examples = (two_pairs_of_three(first, second), two_pairs_of_three(third, fourth), fifth)
        batches.append(Batch(step=step, examples=examples))
    expected, expected_weights = plain_torch(model, batches)
    engine = make_engine()
    for batch, metrics in zip(batches, expected, strict=True):
        report = update(engine, batch)
        assert report.metrics == pytest.approx(metrics, abs=2e-5, rel=1e-4)
        assert report.learner_tokens == distinct_tokens(batch), "what responses begin with alike passes once"
    assert largest_difference(weights_of(engine), expected_weights) < 1e-5


def test_a_supervised_method_lowers_the_loss_of_a_repeated_batch_and_starts_at_its_value(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(by=method("ric"), learning_rate=3e-3)
    examples = tuple(
        Example(prompts=(prompt,), responses=(response,), targets=None, preference=(0.5,))
        for pair in make_batch(0, 5).examples
        for prompt, response in zip(pair.prompts, pair.responses, strict=True)
    )
    logprobs = engine.token_logprobs(
        [example.prompts[0] for example in examples], [example.responses[0] for example in examples]
    )
    expected = -sum(sum(tokens) / len(tokens) for tokens in logprobs) / len(logprobs)
    reports = [update(engine, Batch(step=step, examples=examples)) for step in range(3)]
    assert reports[0].metrics["loss"] == pytest.approx(expected, abs=1e-4)
    assert reports[2].metrics["loss"] < reports[0].metrics["loss"]


def test_dropped_pairs_leave_the_mean_over_those_that_remain(make_engine: MakeEngine, model: str) -> None:
    """3 of 8 planned pairs: two of four micro-batches are fillers and must not count."""
    _, expected = plain_torch(model, [make_batch(0, 3)])
    engine = make_engine()
    train(engine, range(1), num_pairs=3)
    assert largest_difference(weights_of(engine), expected) < 1e-5


def test_without_beta_w_both_spellings_agree_bit_for_bit_and_run_half_the_tokens(make_engine: MakeEngine) -> None:
    by_method = make_engine(by=method("mo-odpo-per-objective", beta_c=0.3))
    by_beta = make_engine(by=method(beta_c=0.3, beta_w=0))
    reports, others = train(by_method, range(2), negatives=0), train(by_beta, range(2), negatives=0)
    assert reports == others
    assert largest_difference(weights_of(by_method), weights_of(by_beta)) == 0
    assert "identification_accuracy" not in reports[0].metrics
    assert reports[0].learner_tokens == distinct_tokens(make_batch(0, 5, negatives=0))


def test_gradients_combined_with_c_of_zero_give_the_per_objective_steps_and_with_more_other_ones(
    make_engine: MakeEngine,
) -> None:
    plain = make_engine(by=method("mo-odpo-per-objective", beta_c=0.3))
    none, some = (make_engine(by=method("raco", beta_c=0.3, c=c)) for c in (0.0, 0.8))
    reports = [train(engine, range(STEPS), negatives=0) for engine in (plain, none, some)]
    assert [report.metrics["coefficient_max"] for report in reports[1]] == [1.0] * STEPS
    assert all(report.metrics["coefficient_max"] > 1 for report in reports[2])
    assert largest_difference(weights_of(plain), weights_of(none)) < 1e-6
    assert largest_difference(weights_of(plain), weights_of(some)) > 1e-4
    for ours, theirs in zip(reports[1], reports[0], strict=True):
        assert {key: ours.metrics[key] for key in theirs.metrics} == pytest.approx(theirs.metrics, abs=1e-6)


def test_a_policy_gradient_raises_what_had_the_advantage(make_engine: MakeEngine) -> None:
    engine = make_engine(by=method("grpo", kl=0.0))
    prompts, responses = ((3, 20, 21),), ((30, 31, 1), (32, 33, 1))
    before = [sum(row) for row in engine.token_logprobs(prompts * 2, responses)]
    old = tuple(tuple(row) for row in engine.token_logprobs(prompts * 2, responses))
    targets = Advantages(advantage=(0.7, -0.7), logprobs=old)
    example = Example(prompts=prompts, responses=responses, targets=targets, preference=(1.0,))
    report = update(engine, Batch(step=0, examples=(example,)))
    after = [sum(row) for row in engine.token_logprobs(prompts * 2, responses)]
    assert after[0] > before[0] and after[1] < before[1]
    assert report.metrics["loss"] == pytest.approx(0, abs=1e-6) and report.metrics["clipped_share"] == 0


LAYOUTS: list[dict[str, Any]] = [
    {},
    {"zero_stage": 1},
    {"zero_stage": 2, "lora": LORA},
    {"zero_stage": 3},
    {"zero_stage": 3, "lora": LORA},
    {"dtype": "bfloat16"},
    {"dtype": "bfloat16", "zero_stage": 3},
    {"zero_stage": 2, "offload_optimizer": True},
    {"dtype": "bfloat16", "zero_stage": 2, "lora": LORA, "offload_optimizer": True},
    {"dtype": "bfloat16", "zero_stage": 3, "offload_optimizer": True},
]


@pytest.mark.parametrize("section", LAYOUTS, ids=str)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(
    make_engine: MakeEngine, tmp_path: Path, section: dict[str, Any], steps: int
) -> None:
    first = make_engine(**section)
    train(first, range(steps))
    first.save_checkpoint(tmp_path / "checkpoint")
    expected = train(first, range(steps, steps + 2))
    second = make_engine(**section)
    train(second, range(1))  # what it held before does not matter
    second.load_checkpoint(tmp_path / "checkpoint")
    assert train(second, range(steps, steps + 2)) == expected
    assert largest_difference(weights_of(first), weights_of(second)) == 0


def test_a_checkpoint_goes_on_under_another_zero_stage(make_engine: MakeEngine, tmp_path: Path) -> None:
    first = make_engine(zero_stage=3)
    train(first, range(2))
    first.save_checkpoint(tmp_path)
    expected = train(first, range(2, 4))
    for section in ({"zero_stage": 0}, {"zero_stage": 2}, {"zero_stage": 1, "offload_optimizer": True}):
        second = make_engine(**section)
        second.load_checkpoint(tmp_path)
        for actual, wanted in zip(train(second, range(2, 4)), expected, strict=True):
            assert actual.metrics == pytest.approx(wanted.metrics, abs=1e-5, rel=1e-4)
        assert largest_difference(weights_of(first), weights_of(second)) < 1e-5


def test_a_checkpoint_holds_no_pickle_and_no_frozen_weights(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(lora=LORA)
    train(engine, range(1))
    engine.save_checkpoint(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["learner.json", "state-00000.safetensors"]
    with safe_open(tmp_path / "state-00000.safetensors", "pt") as tensors:
        names = set(tensors.keys())
    assert {name.partition("/")[0] for name in names} == {"weight", "exp_avg", "exp_avg_sq"}
    assert all(".lora_" in name for name in names)


def test_a_checkpoint_that_the_disk_has_no_room_for_is_told_and_the_one_before_stands(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine()
    train(engine, range(1))
    engine.save_checkpoint(tmp_path / "first")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(LearnerError, match=r"second: cannot be written: .*File too large"):
            engine.save_checkpoint(tmp_path / "second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    engine.load_checkpoint(tmp_path / "first")
    with pytest.raises(LearnerError, match="second"):
        engine.load_checkpoint(tmp_path / "second")


def test_a_checkpoint_that_does_not_fit_or_was_damaged_is_refused_by_name(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine()
    with pytest.raises(LearnerError, match=r"no readable learner\.json"):
        engine.load_checkpoint(tmp_path)
    engine.save_checkpoint(tmp_path)
    with pytest.raises(LearnerError, match=r"lora must be .*, it was saved with None"):
        make_engine(lora=LORA).load_checkpoint(tmp_path)
    state, meta = tmp_path / "state-00000.safetensors", tmp_path / "learner.json"
    whole = state.read_bytes()
    state.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(LearnerError, match=r"file 'state-00000\.safetensors' is missing or damaged"):
        engine.load_checkpoint(tmp_path)
    state.write_bytes(whole)
    described = json.loads(meta.read_text())
    meta.write_text(json.dumps(described | {"files": {"../learner.json": "0"}}))
    with pytest.raises(LearnerError, match=r"file '\.\./learner\.json' is missing or damaged"):
        engine.load_checkpoint(tmp_path)
    meta.write_text(json.dumps(described | {"adam_steps": -1}))
    with pytest.raises(LearnerError, match=r"learner\.json: adam_steps: Input should be greater"):
        engine.load_checkpoint(tmp_path)


@pytest.mark.parametrize("section", [{}, {"lora": LORA}], ids=["full", "lora"])
def test_the_saved_policy_loads_in_transformers_with_the_same_log_probabilities(
    make_engine: MakeEngine, model: str, tmp_path: Path, section: dict[str, Any]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    engine = make_engine(**section)
    train(engine, range(2))
    for _ in range(2):  # the second replaces the first
        engine.save_policy(tmp_path / "policy")
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert saved.dtype == torch.float32 and saved.config.tie_word_embeddings
    assert GenerationConfig.from_pretrained(tmp_path / "policy").eos_token_id == 1
    assert AutoTokenizer.from_pretrained(tmp_path / "policy")("t30 <eos>").input_ids == [30, 1]
    with (
        safe_open(tmp_path / "policy" / "model.safetensors", "pt") as tensors,
        safe_open(Path(model) / "model.safetensors", "pt") as originals,
    ):
        assert set(tensors.keys()) == set(originals.keys())
    prompts, responses = [(3, 20, 21), (3, 22)], [(30, 31, 1), (32,)]
    for prompt, response, actual in zip(prompts, responses, engine.token_logprobs(prompts, responses), strict=True):
        logits = saved(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0]
        assert actual == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_reference_stays_the_starting_policy(make_engine: MakeEngine) -> None:
    prompts, responses = [(3, 20, 21), (3, 22)], [(30, 31, 1), (32,)]
    for section in ({}, {"lora": LORA}):
        engine = make_engine(**section)
        before = engine.token_logprobs(prompts, responses)
        assert engine.token_logprobs(prompts, responses, reference=True) == before
        train(engine, range(2))
        assert engine.token_logprobs(prompts, responses, reference=True) == before
        assert engine.token_logprobs(prompts, responses) != before


def test_a_loss_that_is_not_finite_stops_before_the_optimizer_step(make_engine: MakeEngine) -> None:
    engine = make_engine()
    before = weights_of(engine)
    broken = tuple(pair_example(each.prompts, each.responses, (math.inf, 0.0)) for each in make_batch(7, 5).examples)
    with pytest.raises(LearnerError, match="step 7: the loss is inf; the optimizer step was not taken"):
        update(engine, Batch(step=7, examples=broken))
    assert largest_difference(weights_of(engine), before) == 0
    combining = make_engine(by=method("raco"))
    with pytest.raises(PoisonedUpdateError, match="step 7: an objective's gradient is not finite; the optimizer step"):
        update(combining, Batch(step=7, examples=broken))
    assert largest_difference(weights_of(combining), before) == 0


def test_buckets_hold_every_checkpoint_name_once_and_keep_their_bound(make_engine: MakeEngine, model: str) -> None:
    engine = make_engine(bucket_bytes=60_000)
    buckets = [[spec for spec, _ in bucket] for bucket in engine.weights().buckets()]
    with safe_open(Path(model) / "model.safetensors", "pt") as tensors:
        stored = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118  (not a mapping)
    names = [spec.name for bucket in buckets for spec in bucket]
    assert sorted(names) == sorted(stored) and "lm_head.weight" not in names
    assert names == [spec.name for spec in engine.weights().specs]
    assert len(buckets) > 3
    assert all(len(bucket) == 1 or sum(spec.num_bytes for spec in bucket) <= 60_000 for bucket in buckets)
    assert largest_difference(weights_of(engine), stored) == 0


def test_an_adapter_on_the_tied_head_is_refused(make_engine: MakeEngine) -> None:
    with pytest.raises(LearnerError, match="'lm_head' shares its matrix with another layer"):
        make_engine(lora={**LORA, "target_modules": ["lm_head"]})


def train_in_rank(rank: int, ranks: int, model: str, sections: list[dict[str, Any]], folder: str) -> list[Any]:
    """In each spawned process: train and export every section; (reports, reference log-probabilities) of each."""
    results: list[Any] = []
    for index, section in enumerate(sections):
        engine = LearnerEngine(
            LearnerConfig.model_validate({**SETTINGS, **section, "ranks": ranks}),
            model=model,
            method=method(**BETAS),
            total_steps=10,
            seed=0,
        )
        reports = []
        for step in range(STEPS):
            # 3 pairs and 2, so one rank's last micro-batch is a filler.
            batch = make_batch(step, 5)
            reports.append(update(engine, batch, rank=rank, ranks=ranks))
        engine.save_policy(Path(folder) / f"policy-{index}")
        prompts, responses = [(3, 20, 21), (3, 22)], [(30, 31, 1), (32,)]
        asked = [engine.token_logprobs(prompts, responses, rows=1, reference=of_start) for of_start in (False, True)]
        results.append((reports, asked[1]))
        if section["zero_stage"] == 3:
            weights = weights_of(engine)
            engine.save_checkpoint(Path(folder) / f"checkpoint-{index}")
            expected = update(engine, make_batch(STEPS, 5), rank=rank, ranks=ranks)
            engine.load_checkpoint(Path(folder) / f"checkpoint-{index}")
            assert largest_difference(weights_of(engine), weights) == 0
            assert update(engine, make_batch(STEPS, 5), rank=rank, ranks=ranks) == expected
            results[-1] += (expected,)
    return results


def test_two_ranks_at_every_zero_stage_equal_one_rank(make_engine: MakeEngine, model: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    no_dropout = {**LORA, "dropout": 0.0}  # ranks draw different dropout masks than one rank does
    sections: list[dict[str, Any]] = [{"zero_stage": stage} for stage in range(4)]
    sections += [{"zero_stage": stage, "offload_optimizer": True} for stage in range(1, 4)]
    sections += [{"zero_stage": 3, "lora": no_dropout, "gradient_checkpointing": True}]
    replies = run_ranks(2, train_in_rank, 2, model, sections, str(tmp_path))
    expected: dict[bool, tuple[list[StepReport], dict[str, Tensor], Any]] = {}
    for adapted in (False, True):
        engine = make_engine(**({"lora": no_dropout} if adapted else {}))
        reports = train(engine, range(STEPS))
        logprobs = engine.token_logprobs([(3, 20, 21), (3, 22)], [(30, 31, 1), (32,)], reference=True)
        expected[adapted] = (reports, weights_of(engine), logprobs)
    for index, section in enumerate(sections):
        reports, weights, logprobs = expected["lora" in section]
        for rank in range(2):
            actual_reports, actual_logprobs, *after_checkpoint = replies[rank][index]
            for report in after_checkpoint:  # what the two ranks saved goes on alone
                engine = make_engine(**({"lora": no_dropout} if "lora" in section else {}))
                engine.load_checkpoint(tmp_path / f"checkpoint-{index}")
                alone = update(engine, make_batch(STEPS, 5))
                assert alone.metrics == pytest.approx(report.metrics, abs=1e-5, rel=1e-4)
            for actual, wanted in zip(actual_reports, reports, strict=True):
                assert actual.metrics == pytest.approx(wanted.metrics, abs=1e-5, rel=1e-4), section
                assert actual.learner_tokens == wanted.learner_tokens
            for actual_row, wanted_row in zip(actual_logprobs, logprobs, strict=True):
                assert actual_row == pytest.approx(wanted_row, abs=1e-5)
        saved = load_file(tmp_path / f"policy-{index}" / "model.safetensors")
        assert largest_difference(saved, weights) < 1e-5, section
        shutil.rmtree(tmp_path / f"policy-{index}")


def combine_in_rank(rank: int, ranks: int, model: str) -> list[Any]:
    """In each spawned process: (reports, weights) of gradients combined under every ZeRO stage that allows it."""
    results = []
    for stage in range(3):
        engine = LearnerEngine(
            LearnerConfig.model_validate({**SETTINGS, "zero_stage": stage, "ranks": ranks}),
            model=model,
            method=method("raco", beta_c=0.3, c=0.8),
            total_steps=10,
            seed=0,
        )
        batches = [make_batch(step, 5, negatives=0) for step in range(STEPS)]
        reports = [update(engine, batch, rank=rank, ranks=ranks) for batch in batches]
        results.append((reports, {name: tensor.numpy() for name, tensor in weights_of(engine).items()}))
    return results


def test_gradients_are_combined_over_the_examples_of_all_ranks(make_engine: MakeEngine, model: str) -> None:
    alone = make_engine(by=method("raco", beta_c=0.3, c=0.8))
    expected = train(alone, range(STEPS), negatives=0)
    for replies in run_ranks(2, combine_in_rank, 2, model):
        for reports, weights in replies:
            for actual, wanted in zip(reports, expected, strict=True):
                assert actual.metrics == pytest.approx(wanted.metrics, abs=1e-5, rel=1e-4)
            found = {name: torch.from_numpy(array) for name, array in weights.items()}
            assert largest_difference(found, weights_of(alone)) < 1e-5


def train_on_gpu(rank: int, model: str, folder: str) -> list[tuple[float, float]]:
    """One CUDA rank: (first, last) loss of a short run for each layout."""
    results = []
    layouts: list[dict[str, Any]] = [{"zero_stage": 0}, {"zero_stage": 3}, {"zero_stage": 2, "lora": LORA}]
    layouts += [{"zero_stage": stage, "offload_optimizer": True} for stage in (2, 3)]
    for section in layouts:
        engine = LearnerEngine(
            LearnerConfig.model_validate({**SETTINGS, **section, "num_gpus": 1}),
            model=model,
            method=method(**BETAS),
            total_steps=10,
            seed=0,
        )
        assert engine.dtype == torch.bfloat16 and engine.device.type == "cuda"
        reports = [update(engine, make_batch(0, 5)) for _ in range(6)]
        engine.save_policy(Path(folder) / "policy")
        results.append((reports[0].metrics["loss"], reports[-1].metrics["loss"]))
    return results


@pytest.mark.gpu
def test_one_gpu_trains_in_bfloat16_and_lowers_the_loss_of_a_repeated_batch(model: str, tmp_path: Path) -> None:
    [losses] = run_ranks(1, train_on_gpu, model, str(tmp_path))
    assert all(last < first for first, last in losses)
