"""Recipes: every one in the repository loads; what is wrong in one is named by place, rule and value."""

from pathlib import Path

import pytest
import yaml

from learner.methods import METHODS
from orchestrator.errors import BadInput
from orchestrator.recipes import dump_recipe, load_recipe, parse_recipe
from orchestrator.trees import read_yaml

RECIPES = sorted((Path(__file__).parent.parent / "deploy" / "recipes").glob("*.yaml"))
MINIATURE = str(Path(__file__).parent.parent / "deploy" / "recipes" / "miniature.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_in_the_repository_loads(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem.replace(".", "")
    assert "{assets}" not in dump_recipe(recipe)


def test_there_are_recipes_to_load():
    assert {"miniature.yaml", "miniature-3.yaml", "hh-smollm2.yaml", "smollm2.yaml", "smollm2-3.yaml"} <= {
        path.name for path in RECIPES
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_resolved_recipe_loads_back_to_an_equal_one(path, tmp_path):
    recipe = load_recipe(path)
    (tmp_path / "config.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "config.yaml") == recipe


def test_overrides_obey_the_same_rules_as_the_file():
    recipe = load_recipe(MINIATURE, ["learner.learning_rate=1e-4", "seed=3", "objectives.0.replicas=2"])
    assert recipe.learner.learning_rate == 1e-4
    assert recipe.objectives[0].replicas == 2
    assert recipe.policy.model.endswith("seed3/policy")


def test_objectives_keep_the_order_of_the_recipe():
    tree = read_yaml(Path(MINIATURE))
    tree["objectives"].reverse()
    assert parse_recipe(tree, where="r").objective_names == ("harmlessness", "helpfulness")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("learner.learning_rat=1", "learner.learning_rat: unknown key"),
        ("loop.steps=many", "loop.steps"),
        ("loop.steps=0", "loop.steps"),
        (
            "learner.micro_batch_tokens=191",
            "must hold the longest example, 192 tokens (2 vectors x (rollout.max_model_len + rollout.max_new_tokens",
        ),
        ("objectives.1.name=helpfulness", "'helpfulness' more than once"),
        ("objectives.7.name=x", "index below 2"),
        ("objectives.².name=x", "index below 2"),
        (f"objectives.{'9' * 5000}.name=x", "index below 2"),
        ("seed=on", "recipe: seed takes numbers, not true or false, got True"),
        ("learner.adam_betas=[true, 0.9]", "learner: adam_betas takes numbers, not true or false, got [True, 0.9]"),
        ("learner.zero_stage=true", "learner: zero_stage takes numbers, not true or false, got True"),
        ("method.beta_c=true", "method: beta_c takes numbers, not true or false, got True"),
        ("loop.steps=12:30:45", "loop.steps: "),
        ("learner.learning_rate=1:30", "learner.learning_rate: "),
        ("preferences.alpha=-1", "preferences.alpha"),
        ("rollout.max_new_tokens=64", "max_new_tokens"),
        ("evaluate.reference_point=[0,0,0]", "one number or 2"),
        ("objectives.0.audit=null", "audit judge is given for all objectives or none"),
        ("method=ppo", "method"),
        ("loop", "must read section.key=value"),
        ("seed.deep=1", "seed is not a section, got 0"),
    ],
)
def test_a_bad_value_is_named_with_place_and_rule(override, said):
    with pytest.raises(BadInput) as error:
        load_recipe(MINIATURE, [override])
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluate.reference_point=.nan", "evaluate.reference_point: Input should be a finite number, got nan"),
        ("objectives.0.scorer.max_length=x", "objectives.0.scorer.max_length: Input should be a valid integer, .*"),
        ("learner.adam_betas=[0.9]", "learner.adam_betas.1: Field required"),
        ("data={}", "data.train, data.heldout: Field required"),
    ],
)
def test_one_mistake_is_one_line_with_the_key_as_it_stands_in_the_recipe(override, said):
    with pytest.raises(BadInput, match=f"^{MINIATURE}: {said}$"):
        load_recipe(MINIATURE, [override])


def test_a_number_of_an_override_is_decimal_and_a_quoted_one_a_text():
    assert load_recipe(MINIATURE, ["seed=010"]).seed == 10
    assert load_recipe(MINIATURE, ["name='1e3'"]).name == "1e3"


def test_a_file_that_is_missing_or_not_yaml_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"nowhere\.yaml: cannot be read"):
        load_recipe(tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    with pytest.raises(BadInput, match=r"bad\.yaml: not valid YAML"):
        load_recipe(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text(yaml.safe_dump([1, 2]))
    with pytest.raises(BadInput, match="mapping of sections"):
        load_recipe(tmp_path / "list.yaml")


@pytest.mark.parametrize("fixed", ["[1]", "[0.5, 0.6]", "[-1, 2]"])
def test_a_fixed_preference_must_be_one(fixed):
    with pytest.raises(BadInput, match=r"preferences\.fixed: "):
        load_recipe(MINIATURE, [f"preferences.fixed={fixed}"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["loop.max_staleness=1"], "loop.max_staleness must be 0 with rollout.colocated, got 1"),
        (["rollout.engines=2"], "rollout.engines must equal learner.ranks = 1 with rollout.colocated, got 2"),
        (
            ["rollout.tensor_parallel_size=2", "rollout.num_gpus=1"],
            "rollout.tensor_parallel_size must be 1 with rollout.colocated, got 2",
        ),
        (
            ["rollout.num_gpus=0.5"],
            "rollout.num_gpus and learner.num_gpus must both be above 0, or both 0 with rollout.colocated, "
            "got 0.5 and 0",
        ),
        (
            ["rollout.num_gpus=0.5", "learner.num_gpus=0.6"],
            "rollout.num_gpus + learner.num_gpus must be above 0.5 and at most 1 with rollout.colocated, got 0.5 + 0.6",
        ),
        (
            ["rollout.num_gpus=0.3", "learner.num_gpus=0.2"],
            "rollout.num_gpus + learner.num_gpus must be above 0.5 and at most 1 with rollout.colocated, got 0.3 + 0.2",
        ),
        (
            ["learner.node_labels={pool: h100}"],
            "rollout.node_labels must equal learner.node_labels = {'pool': 'h100'} with rollout.colocated, got {}",
        ),
    ],
)
def test_engines_and_ranks_that_cannot_share_their_gpus_are_refused(overrides, said):
    with pytest.raises(BadInput) as error:
        load_recipe(MINIATURE, ["rollout.colocated=true", *overrides])
    assert str(error.value) == f"{MINIATURE}: recipe: {said}"


@pytest.mark.parametrize("share", [0, 0.3, 0.7])
def test_engines_and_ranks_may_share_gpus_and_that_is_the_same_work(share):
    gpus = [f"rollout.num_gpus={share}", f"learner.num_gpus={1 - share if share else 0}"]
    colocated = load_recipe(MINIATURE, ["rollout.colocated=true", *gpus])
    assert colocated.same_work(load_recipe(MINIATURE, gpus))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_learner_may_be_named(method):
    recipe = load_recipe(MINIATURE, [f"method={method}"])
    assert recipe.method.type == method
    assert recipe.method.model_dump().get("beta_c", 0.3) == 0.3, "what the two methods share stays as the recipe says"


def test_a_method_is_named_alone_or_with_its_settings():
    tree = read_yaml(Path(MINIATURE))
    for section in ("raco", {"type": "raco"}, {"type": "raco", "c": 0.4}):
        assert parse_recipe({**tree, "method": section}, where="r").method.model_dump()["c"] == 0.4
    recipe = load_recipe(MINIATURE, ["method=raco", "method.c=0.2"])
    assert recipe.method.model_dump()["c"] == 0.2
    del tree["method"]
    assert parse_recipe(tree, where="r").method.type == "mi-epo"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("ppo", "r: method: type must be one of mi-epo, mi-epo-scalarized, .*, got 'ppo'"),
        (7, "r: method: must be a method's name, or a mapping with it as type, got 7"),
        ({"beta_c": 0.1}, "r: method: type must be one of .*, got None"),
        ({"type": ["mi-epo"]}, r"r: method: type must be one of .*, got \['mi-epo'\]"),
        ({"type": {"a": 1}}, "r: method: type must be one of .*, got {'a': 1}"),
        ({"type": "mi-epo", "beta_c": 0}, "r: method.beta_c: Input should be greater than 0, got 0"),
        ({"type": "mi-epo", "beta_x": 0}, "r: method.beta_x: unknown key, got 0"),
        ({"type": "mo-odpo", "beta_w": 0.1}, r"r: method: beta_w is no setting of mo-odpo \(but of mi-epo, mi-epo-s"),
    ],
)
def test_a_method_section_that_cannot_be_is_refused_in_one_line(section, said):
    with pytest.raises(BadInput, match=f"^{said}.*$"):
        parse_recipe({**read_yaml(Path(MINIATURE)), "method": section}, where="r")


def test_each_key_that_has_moved_is_told_with_its_new_place():
    with pytest.raises(BadInput) as error:
        load_recipe(MINIATURE, ["learner.beta_c=0.1", "learner.micro_batch_pairs=4", "learner.routing=sampled"])
    assert str(error.value).splitlines() == [
        f"{MINIATURE}: learner.beta_c: moved to method.beta_c",
        f"{MINIATURE}: learner.routing: moved to method.routing",
        f"{MINIATURE}: learner.micro_batch_pairs: moved to learner.micro_batch_tokens",
    ]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method=ric", "loop.steps=1"], "method ric: loop.steps must be at least 2"),
        (["method=rewarded-soups", "loop.steps=3"], "loop.steps must be a multiple of the 2 objectives"),
        (
            ["method=rewarded-soups", "preferences.fixed=[0, 1]"],
            "preferences.fixed must not be set where each expert has its own vector",
        ),
        (
            ["loop.responses_per_prompt=1"],
            "method mi-epo: loop.responses_per_prompt must be at least 2, got 1",
        ),
        (["method=raco", "learner.zero_stage=3"], "method raco: learner.zero_stage must be at most 2"),
        (["preferences.negatives=0"], "preferences.negatives: Input should be greater than or equal to 1, got 0"),
    ],
)
def test_what_a_method_cannot_be_trained_with_is_refused(overrides, said):
    with pytest.raises(BadInput) as error:
        load_recipe(MINIATURE, overrides)
    assert said in str(error.value)
