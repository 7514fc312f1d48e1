"""What `mi-epo plan` says of a run before it starts: is the input usable, does it fit, what will it cost.

Ray only when a running cluster is to be asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from learner.methods import make_method
from orchestrator.cards import CARDS, card_named, card_of
from orchestrator.cluster import connection
from orchestrator.cluster.placement import Node, demands, placement_table
from orchestrator.cluster.threads import take_turns, with_threads
from orchestrator.errors import BadInput
from orchestrator.estimate.memory import problems
from orchestrator.estimate.shapes import policy_shape
from orchestrator.estimate.split import splits
from orchestrator.estimate.table import assumed_prompt, estimate_rows, row, split_rows
from orchestrator.inputs import Inputs, check_inputs, check_unbuilt
from rewards.simplex import evaluation_grid

if TYPE_CHECKING:
    from orchestrator.config import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Example: Plan(text="Placement ...", refusals=("this machine has no room ...",))"""

    text: str
    """Placement, batch arithmetic, memory and time, for a person."""
    refusals: tuple[str, ...]
    """Why the recipe cannot run there, if it cannot."""


def describe_plan(recipe: "Recipe", inputs: Inputs | None, nodes: Sequence[Node]) -> str:
    """What is known of a run, for a person; no `inputs`: they are not there, no `nodes`: not known."""
    address = connection.joins_existing(recipe)
    if inputs is not None:  # an evaluation takes no prompt twice
        prompts = min(recipe.evaluate.prompts, len(inputs.heldout))
        recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"prompts": prompts})})
    lines = [
        f"{recipe.name}: seed {recipe.seed}, objectives {', '.join(recipe.objective_names)}",
        f"method {_method_text(recipe)}",
        f"\nPlacement ({f'Ray cluster at {address}' if address else 'local Ray cluster'})",
        placement_table(demands(recipe), nodes),
        *_thread_rows(recipe),
        "\nBatch",
        *_batch_rows(recipe),
    ]
    room = recipe.rollout.max_model_len - recipe.rollout.max_new_tokens
    if inputs is not None:
        example = inputs.renderer.text(inputs.train[0], evaluation_grid(recipe.num_objectives)[1].tolist())
        lines += [
            "\nPrompts",
            row("train, held-out", f"{len(inputs.train)}, {len(inputs.heldout)}"),
            row("longest with w", f"{inputs.longest_prompt_tokens} tokens of {room}"),
            row("example", f"{example!r:.200}"),
            *(f"  {remark}" for remark in inputs.remarks),
        ]
    if recipe.assets is not None and recipe.is_unbuilt:
        lines.append(f"\nAssets: built by `mi-epo train` in {recipe.assets.directory} (not built yet)")
    card = card_of([card for node in nodes for card in node.cards], recipe.cluster.card)
    return "\n".join([*lines, *estimate_rows(recipe, card, inputs.mean_prompt_tokens if inputs else None)])


def _thread_rows(recipe: "Recipe") -> list[str]:
    if not take_turns(recipe):
        return []
    settled = with_threads(recipe)
    return [f"  {settled.rollout.threads} threads an engine, {settled.learner.threads} a learner rank: they take turns"]


def _method_text(recipe: "Recipe") -> str:
    settings = recipe.method.model_dump(exclude={"type"})
    return f"{recipe.method.type} ({', '.join(f'{key} {value}' for key, value in settings.items())})"


def _batch_rows(recipe: "Recipe") -> list[str]:
    loop, learner = recipe.loop, recipe.learner
    responses = loop.responses_per_prompt * loop.prompts_per_step
    method = make_method(recipe.method)
    vectors = f"w+ and {recipe.preferences.negatives} w-" if method.negatives else "w+ alone"
    reference = "policy and reference" if method.uses_reference else "the policy"
    grid, prompts = len(evaluation_grid(recipe.num_objectives)), recipe.evaluate.prompts
    samples = recipe.evaluate.samples
    tokens = loop.steps * responses * recipe.rollout.max_new_tokens
    asked = f"{loop.prompts_per_step} prompts x {loop.responses_per_prompt} = {responses} responses"
    measured = f"{grid} vectors x {prompts} prompts x {samples} = {grid * prompts * samples} responses"
    return [
        row("one optimizer step", asked),
        row("learner", f"{learner.ranks} rank(s), micro-batches of at most {learner.micro_batch_tokens} tokens"),
        row("one response", f"passed under {vectors}, by {reference}"),
        row("whole run", f"{loop.steps} steps, {loop.steps * responses} responses, <= {tokens} generated tokens"),
        row("staleness", f"<= {loop.max_staleness}"),
        row("one evaluation", measured),
    ]


def plan(recipe: "Recipe", *, live: bool = False, device: str | None = None, gpus: int | None = None) -> Plan:
    """Check everything and describe what can be described.

    Args:
        live: against the running cluster.
        device: of the machines that it is planned for, which are not asked; a beginning of a card's name.
        gpus: how many such, to be divided.

    Raises:
        BadInput: there is no cluster to ask, no such device, or so many have no room.
    """
    if live and (device is not None or gpus is not None):
        raise BadInput("plan --live: the running cluster has its own GPUs; leave --device and --gpus out")
    local = connection.joins_existing(recipe) is None
    if device is not None:
        card = card_named(device)
        recipe = recipe.model_copy(update={"cluster": recipe.cluster.model_copy(update={"card": card.name})})
    if live and local:
        raise BadInput("plan --live: no cluster is named; set cluster.address or RAY_ADDRESS")
    refusals: list[str] = []
    nodes: list[Node] = []
    elsewhere = device is not None or gpus is not None
    if elsewhere:
        refusals = [] if gpus is not None else problems(recipe, CARDS[recipe.cluster.card])
    elif local:
        nodes = [connection.this_machine(recipe)]
        refusals = connection.refusals(recipe, nodes[0])
    elif live:
        with connection.connect(recipe):
            nodes = connection.live_nodes(ask_cards=True)
        refusals = problems(recipe, card_of([card for node in nodes for card in node.cards], recipe.cluster.card))
    inputs, assets = None, recipe.assets
    if assets is not None and assets.build is None and recipe.is_unbuilt:
        refusals.append(f"assets.directory: must be there (the recipe does not build it), got {assets.directory!r}")
    else:
        try:
            inputs = check_unbuilt(recipe) if recipe.is_unbuilt else check_inputs(recipe)
        except BadInput as error:
            refusals.append(str(error))
    text = describe_plan(recipe, inputs, nodes)
    if gpus is not None:
        text += "\n" + "\n".join(_splits(recipe, inputs, gpus))
    return Plan(text=text, refusals=tuple(refusals))


def _splits(recipe: "Recipe", inputs: Inputs | None, gpus: int) -> list[str]:
    shape, card = policy_shape(recipe), CARDS[recipe.cluster.card]
    if shape is None:
        raise BadInput(f"--gpus: the size of policy.model {recipe.policy.model!r} is unknown until it is here")
    tokens = inputs.mean_prompt_tokens if inputs else assumed_prompt(recipe)
    return split_rows(splits(recipe, shape, card, gpus, tokens), card, gpus)
