"""The command line: what bad input says and which code it leaves with, before any model loads."""

import gzip
import json
from pathlib import Path

import pytest
import yaml

from orchestrator.cards import Gpu
from orchestrator.cli import build_parser, explain, main, parse_arguments
from orchestrator.cluster.connection import refusals
from orchestrator.cluster.placement import Node, demands
from orchestrator.errors import BadInput, RunFailed
from orchestrator.estimate.shapes import count_parameters
from orchestrator.inputs import check_inputs
from orchestrator.recipes import load_recipe, parse_recipe
from tests.tiny_models import make_tiny_policy

MINIATURE = Path(__file__).parent.parent / "deploy" / "recipes" / "miniature.yaml"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a tiny policy, prompts, and a recipe that uses them with scorers that load nothing."""
    folder = tmp_path_factory.mktemp("work")
    make_tiny_policy(folder / "policy", vocab=100)
    for name, count in (("train", 8), ("heldout", 4)):
        rows = [json.dumps({"prompt": f"prompt {i}"}) for i in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def recipe_tree(folder):
    tree = yaml.safe_load(MINIATURE.read_text())
    del tree["assets"]
    tree["policy"]["model"] = str(folder / "policy")
    tree["data"] = {"train": str(folder / "train.jsonl"), "heldout": str(folder / "heldout.jsonl")}
    tree["evaluate"] = {"prompts": 2, "samples": 2}
    for objective in tree["objectives"]:
        objective["scorer"] = {"type": "python", "function": "rewards.functions:brevity"}
        del objective["audit"]
    return tree


def run(capsys, folder, *overrides, command="plan", change=None):
    tree = recipe_tree(folder)
    if change:
        change(tree)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    code = main([command, str(path), *overrides])
    return code, capsys.readouterr()


def test_a_good_recipe_prints_placement_batch_arithmetic_and_memory(capsys, workplace):
    code, said = run(capsys, workplace)
    assert code == 0
    for part in (
        "Placement",
        "rollout",
        "32 prompts x 2 = 64",
        "<= 0",
        "Memory",
        "parameters",
        "8, 4",
    ):
        assert part in said.out


def test_a_recipe_whose_assets_are_not_built_yet_is_planned_without_them(capsys, tmp_path):
    assert main(["plan", str(MINIATURE), f"assets.directory={tmp_path}/none"]) == 0
    assert "not built yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("learner.offload_optimizer=true", "learner: zero_stage must be at least 1 with offload_optimizer, got 0"),
        ("method.beta_x=1", "method.beta_x: unknown key"),
        ("learner.learning_rate=fast", "learner.learning_rate"),
        ("data.train=/nowhere/x.jsonl", "data.train: /nowhere/x.jsonl: cannot be read"),
        ("policy.model=/nowhere/model", "policy.model: must be a Hugging Face folder"),
        ("evaluate.audit_statistics.x=math:pi", "evaluate.audit_statistics.x: 'math:pi' must be a function"),
        ("evaluate.audit_statistics.x=nowhere:f", "evaluate.audit_statistics.x: cannot import 'nowhere'"),
        ("rollout.max_model_len=36", "must fit rollout.max_model_len - rollout.max_new_tokens = 4 tokens"),
        ("objectives.0.scorer.function=rewards.functions:nothing", "objectives.0.scorer"),
    ],
)
def test_what_can_be_known_before_start_is_said_in_one_line_with_code_2(capsys, workplace, override, said):
    code, captured = run(capsys, workplace, *override.split())
    assert code == 2
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("mi-epo: ")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "learner.ranks=4 cluster.num_cpus=1",
            "this machine has no room for the recipe: learner: there is room for 2 of its 4 actors",
        ),
        ("rollout.num_gpus=1 cluster.num_cpus=8", "all actors together need 1 GPUs, the nodes have 0"),
    ],
)
def test_what_has_no_room_is_said_with_a_table_of_demand_and_nodes(capsys, workplace, override, said):
    code, captured = run(capsys, workplace, *override.split())
    assert code == 2
    first, *table = captured.err.splitlines()
    assert said in first
    assert table[0].split()[:2] == ["asked", "by"] and table[-1].split()[:2] == ["this", "machine"]


def test_what_has_no_room_is_said_with_the_keys_that_ask_for_it(capsys, workplace):
    code, captured = run(capsys, workplace, "rollout.num_cpus=8", "learner.num_gpus=1", "objectives.1.replicas=3")
    keys = "rollout.num_cpus, learner.num_cpus, learner.num_gpus, objectives.0.num_cpus, objectives.1.replicas"
    assert code == 2
    assert f"; what asks for it: {keys}, objectives.1.num_cpus\n" in captured.err


def test_one_file_for_both_kinds_of_prompts_is_refused(capsys, workplace):
    train = workplace / "train.jsonl"
    code, said = run(capsys, workplace, f"data.heldout={train.parent}/../{train.parent.name}/{train.name}")
    assert code == 2
    assert said.err.startswith("mi-epo: data.heldout: must be another file than data.train, got ")


def test_prompts_that_are_held_out_and_trained_on_are_told(capsys, workplace):
    remark = "data.heldout: 4 of its 4 prompts are trained on as well"
    assert check_inputs(parse_recipe(recipe_tree(workplace), where="r")).remarks == (remark,)
    code, said = run(capsys, workplace)
    assert (code, f"  {remark}\n" in said.out) == (0, True)


def test_names_that_no_module_of_the_policy_has_get_no_adapter(capsys, workplace):
    assert run(capsys, workplace, "learner.lora={target_modules: [q_proj, layers.1.mlp.up_proj]}")[0] == 0
    code, said = run(capsys, workplace, "learner.lora={target_modules: [q_proj, nosuch, proj]}")
    rule = "learner.lora.target_modules: must be modules of policy.model, got 'nosuch', 'proj'"
    assert (code, said.err) == (2, f"mi-epo: {rule}\n")


def test_a_function_is_asked_for_one_score_by_plan(capsys, workplace):
    code, said = run(capsys, workplace, "objectives.1.scorer.options={enogh: 5}")
    problem = "scorer rewards.functions:brevity raised TypeError: brevity() got an unexpected keyword argument 'enogh'"
    assert (code, said.err) == (2, f"mi-epo: objectives.1.scorer.function: {problem}\n")


def test_an_evaluation_is_planned_with_the_prompts_that_are_there(capsys, workplace):
    code, said = run(capsys, workplace, "evaluate.prompts=48", "evaluate.samples=4")
    assert (code, "11 vectors x 4 prompts x 4 = 176 responses" in said.out) == (0, True)


def test_a_folder_instead_of_a_recipe_is_named_and_a_run_told_its_recipe(capsys, workplace, tmp_path):
    assert main(["plan", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"mi-epo: {tmp_path}: must be a file, got a folder\n"
    (tmp_path / "config.yaml").touch()
    assert main(["plan", str(tmp_path)]) == 2
    assert f"got a folder; the recipe of this run is {tmp_path / 'config.yaml'}\n" in capsys.readouterr().err


def test_a_dead_server_is_refused_by_plan(capsys, workplace):
    code, said = run(capsys, workplace, "objectives.1.scorer={type: http, url: 'http://127.0.0.1:9/score'}")
    assert code == 2
    problem = "scorer http://127.0.0.1:9/score is unreachable after 1 try (ConnectionError)"
    assert said.err == f"mi-epo: objectives.1.scorer.url: {problem}\n"


@pytest.mark.parametrize("objectives", [2, 3, 5])
def test_one_engine_one_rank_and_their_judges_fit_two_cores_by_default(workplace, objectives):
    tree = recipe_tree(workplace)
    del tree["rollout"]["num_cpus"], tree["learner"]["num_cpus"]
    first = tree["objectives"][0]
    tree["objectives"] = [{**first, "name": f"o{index}"} for index in range(objectives)]
    machine = Node(name="this machine", cpus=2, gpus=0)
    assert refusals(parse_recipe(tree, where="r"), machine) == []


def test_several_problems_are_all_named_at_once(capsys, workplace):
    code, captured = run(capsys, workplace, "data.train=/nowhere/a", "data.heldout=/nowhere/b")
    assert code == 2
    assert "data.train" in captured.err
    assert "data.heldout" in captured.err


def test_a_broken_prompt_line_is_named_by_file_and_number(capsys, workplace):
    with gzip.open(workplace / "broken.jsonl.gz", "wt") as file:
        file.write('{"prompt": "fine"}\n{oops\n')
    code, captured = run(capsys, workplace, f"data.train={workplace}/broken.jsonl.gz")
    assert (code, "broken.jsonl.gz:2: not valid JSON" in captured.err) == (2, True)


def test_training_into_a_used_run_directory_is_refused_before_anything_starts(capsys, workplace, tmp_path):
    (tmp_path / "config.yaml").write_text("x: 1\n")
    code, captured = run(capsys, workplace, "--run-dir", str(tmp_path), command="train")
    assert (code, "holds a run of another recipe" in captured.err) == (2, True)


def test_resume_needs_a_run_with_a_checkpoint(capsys, workplace, tmp_path):
    assert run(capsys, workplace, "--resume", command="train")[0] == 2
    code, captured = run(capsys, workplace, "--resume", "--run-dir", str(tmp_path), command="train")
    assert (code, "not a run directory" in captured.err) == (2, True)


@pytest.mark.parametrize(
    ("prefer", "said"),
    [
        (["helpfulness=0.5", "harmlessness=0.6"], "sum"),
        (["helpfulness=-0.5", "harmlessness=1.5"], "helpfulness"),
        (["kindness=1"], "kindness"),
        (["helpfulness=1"], "harmlessness"),
        (["helpfulness=much", "harmlessness=0"], "must read NAME=WEIGHT"),
    ],
)
def test_a_wrong_preference_is_refused_before_the_policy_loads(capsys, tmp_path, prefer, said):
    conditioning = {
        "objectives": ["helpfulness", "harmlessness"], "preferences": {}, "max_new_tokens": 4, "temperature": 1.0
    }  # fmt: skip
    (tmp_path / "mi_epo.json").write_text(json.dumps(conditioning))
    items = [part for item in prefer for part in ("--prefer", item)]
    assert main(["generate", str(tmp_path), *items, "--prompt", "hello"]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_no_policy_of_ours_is_named(capsys, tmp_path):
    assert main(["generate", str(tmp_path), "--prefer", "a=1", "--prompt", "x"]) == 2
    assert "not a policy trained by mi-epo" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "not a run directory" in capsys.readouterr().err


def test_evaluating_a_policy_of_other_objectives_is_refused(capsys, workplace, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    conditioning = {"objectives": ["a", "b"], "preferences": {}, "max_new_tokens": 4, "temperature": 1.0}
    (tmp_path / "mi_epo.json").write_text(json.dumps(conditioning))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_tree(workplace)))
    assert main(["evaluate", str(tmp_path), "--recipe", str(tmp_path / "recipe.yaml")]) == 2
    assert "is a policy for the objectives ['a', 'b']" in capsys.readouterr().err


def test_overrides_may_stand_before_and_after_options():
    arguments = parse_arguments(["train", "r.yaml", "a=1", "--run-dir", "x", "b=2"])
    assert arguments.overrides == ["a=1", "b=2"]


def test_an_unknown_option_is_an_error():
    with pytest.raises(SystemExit) as left:
        parse_arguments(["train", "r.yaml", "--fast"])
    assert left.value.code == 2


def every_option() -> list[tuple[str, str]]:
    commands = next(action for action in build_parser()._actions if isinstance(action.choices, dict)).choices
    assert isinstance(commands, dict)
    return [
        (command, action.option_strings[-1])
        for command, parser in commands.items()
        for action in parser._actions
        if action.option_strings and action.nargs != 0
    ]


@pytest.mark.parametrize(("command", "option"), every_option())
def test_an_option_given_as_empty_is_refused_in_one_line(capsys, command, option):
    with pytest.raises(SystemExit) as left:
        main([command, option, ""])
    said = capsys.readouterr().err
    assert (left.value.code, said.count("\n")) == (2, 1)
    assert said.startswith("mi-epo: argument ") and option in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "run", "-n", "0"], "argument -n/--num-responses: must be a whole number of at least 1, got '0'"),
        (["generate", "run", "-n", "-1"], "argument -n/--num-responses: must be a whole number of at least 1"),
        (["generate", "run", "--seed", str(2**70)], "argument --seed: must be a whole number from 0 to 2147483647"),
        (["miniature", "out", "--seed", "-1"], "argument --seed: must be a whole number from 0 to 2147483647"),
        (["compare", "r.yaml", "--tune-seed", "x"], "argument --tune-seed: must be a whole number from 0 to "),
        (["generate", "run", "--prompt", "\udcff"], "argument --prompt: must be text in UTF-8, got '\\udcff'"),
        (["plan", "r.yaml", ""], "argument section.key=value: must not be empty"),
        (["train"], "the following arguments are required: RECIPE, section.key=value (see mi-epo train --help)"),
    ],
)
def test_what_an_option_cannot_be_is_refused_in_one_line(capsys, arguments, said):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    line = capsys.readouterr().err
    assert (left.value.code, line.count("\n")) == (2, 1)
    assert line.startswith(f"mi-epo: {said}")


def test_parameters_are_counted_from_file_headers(workplace):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(workplace / "policy")
    assert count_parameters(workplace / "policy") == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("error", "code"), [(BadInput("place: rule"), 2), (RunFailed("engine 0: gone"), 1)])
def test_what_a_person_can_act_on_is_one_line_also_when_it_comes_out_of_an_actor(capsys, error, code):
    class FromAnActor(RuntimeError):
        cause = error

    assert explain(error) == explain(FromAnActor("a long traceback")) == code
    assert capsys.readouterr().err == f"mi-epo: {error}\n" * 2


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        explain(ZeroDivisionError())


def test_every_actor_of_a_recipe_is_asked_for():
    overrides = ["rollout.engines=2", "rollout.num_gpus=1", "learner.num_gpus=0.5", "learner.node_labels={pool: a}"]
    asked = demands(load_recipe(MINIATURE, overrides))
    assert [(each.role, each.count, each.num_gpus, dict(each.node_labels)) for each in asked] == [
        ("rollout", 2, 1, {}),
        ("learner", 1, 0.5, {"pool": "a"}),
        ("reward-helpfulness", 1, 0, {}),
        ("reward-harmlessness", 1, 0, {}),
    ]


@pytest.mark.parametrize(("share", "gpus"), [(0, 0), (0.45, 0.9)])
def test_an_engine_and_its_rank_on_one_gpu_are_asked_for_as_one(share, gpus):
    overrides = ["rollout.colocated=true", f"rollout.num_gpus={share}", f"learner.num_gpus={share}"]
    overrides += ["rollout.engines=2", "learner.ranks=2", "rollout.num_cpus=2"]
    pair, *judges = demands(load_recipe(MINIATURE, overrides))
    assert (pair.role, pair.count, pair.num_cpus, pair.num_gpus) == ("rollout+learner", 2, 2.35, gpus)
    assert [judge.role for judge in judges] == ["reward-helpfulness", "reward-harmlessness"]


def test_the_plan_shows_what_shares_a_gpu(capsys, workplace):
    code, said = run(capsys, workplace, "rollout.colocated=true")
    assert code == 0
    assert next(line.split()[:2] for line in said.out.splitlines() if "rollout" in line) == ["rollout+learner", "1"]


def test_a_recipe_for_gpus_is_planned_where_there_are_none_and_then_refused(capsys):
    assert main(["plan", str(MINIATURE.parent / "qwen3-8b-1gpu.yaml"), "cluster.card=A100 80GB"]) == 2
    said = capsys.readouterr()
    assert "  1 GPU of 80.0 GiB        rollout+learner, reward-helpfulness, reward-harmlessness: fits" in said.out
    assert "Time of a step on A100 80GB (estimated at 35% of 312 TFLOP/s, 60% of 2.04 TB/s)" in said.out
    assert "data.train: data/helpful/prompts/train.jsonl: cannot be read" in said.err


def test_the_lengths_of_the_prompts_decide_the_time_of_a_step(workplace):
    inputs = check_inputs(parse_recipe(recipe_tree(workplace), where="r"))
    assert inputs.longest_prompt_tokens == inputs.mean_prompt_tokens == 8


def test_gpus_that_this_environment_cannot_use_are_refused_before_anything_loads():
    old = Gpu(name="NVIDIA H100 80GB HBM3", memory=81_559 << 20, driver="1.0")
    machine = Node(name="this machine", cpus=16, gpus=1, cards=(old,))
    recipe = load_recipe(MINIATURE.parent / "qwen3-8b-1gpu.yaml")
    (said,) = refusals(recipe, machine)
    assert said.startswith("this machine's GPUs: torch ")
    assert refusals(load_recipe(MINIATURE), machine) == []


def test_the_card_of_the_machine_decides_not_the_one_that_was_planned():
    small = Gpu(name="NVIDIA L4", memory=23_034 << 20, driver="999.1")
    machine = Node(name="this machine", cpus=16, gpus=1, cards=(small,))
    said = refusals(load_recipe(MINIATURE.parent / "qwen3-8b-1gpu.yaml"), machine)
    assert any("must hold 25.9 GiB of a GPU" in line and "NVIDIA L4 has 22.5 GiB" in line for line in said)


@pytest.mark.parametrize("card", ["GTX 1080", ""])
def test_a_card_of_no_known_name_is_refused(card):
    with pytest.raises(BadInput, match=f"cluster.card: must be one of B200, .*, got '{card}'"):
        load_recipe(MINIATURE, [f"cluster.card='{card}'"])


def test_a_running_cluster_must_be_named_to_be_asked(capsys):
    assert main(["plan", str(MINIATURE), "--live"]) == 2
    assert "plan --live: no cluster is named" in capsys.readouterr().err
