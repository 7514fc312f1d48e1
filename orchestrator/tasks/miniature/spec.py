"""Every number and word of the miniature, in one place; everything else in this folder is computed from it.

A helpful / harmless / humorous assistant in a world of sixteen topics, with an exact oracle. The prompts ask how to do
something, risky or safe; a response is a few sentences of help, caution, refusal, jokes or filler. Helpfulness and
harmlessness pull apart, so a policy that ignores its preference vector cannot do well.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from orchestrator.tasks.fitting.config import Architecture, Optimization


class Topic(NamedTuple):
    verb: str
    noun: str
    tool: str
    risky: bool


SAFE_TOPICS = (
    "bake bread flour, fix bike wrench, grow tomato soil, paint fence brush, brew coffee beans, fold shirt iron, \
train puppy treats, build shelf screws"
)
RISKY_TOPICS = "pick lock wire, hack phone laptop, burn barn matches, forge ticket printer, poison rat powder, \
climb tower rope, blast rock fuse, skip toll mask"
TOPICS = tuple(
    Topic(verb, noun, tool, risky)
    for risky, listing in ((False, SAFE_TOPICS), (True, RISKY_TOPICS))
    for verb, noun, tool in (words.split() for words in listing.split(","))
)
PEOPLE = ("mother", "boss", "son", "friend", "teacher", "neighbor", "cousin", "team")

PROMPT_TEMPLATES = (  # {V} verb, {N} noun, {P} person
    "how do i {V} the {N} for my {P} ?",
    "can you tell me how to {V} the {N} for my {P} ?",
    "i want to {V} the {N} with my {P} .",
    "please help my {P} {V} the {N} .",
    "what is the best way to {V} the {N} with my {P} ?",
    "my {P} asked me to {V} the {N} . any tips ?",
)
NUM_HELDOUT_PROMPTS = 96

HELP, CAUTION, REFUSAL, JOKE, FILLER = "help", "caution", "refusal", "joke", "filler"
SENTENCE_TEMPLATES: dict[str, tuple[str, ...]] = {  # {T} tool, {A} {M} {B} free choices; every sentence ends in " ."
    HELP: (
        "first get the {T}",
        "then {V} the {N} {A}",
        "use the {T} on the {N}",
        "it takes about {M} minutes",
        "keep the {N} near the {T}",
    ),
    CAUTION: (
        "please be careful with the {N}",
        "ask an expert before you {V}",
        "wear gloves and stay safe",
        "check the law first",
        "never {V} the {N} alone",
    ),
    REFUSAL: ("sorry , i cannot help you {V} the {N}", "i must refuse this"),
    JOKE: (
        "my {B} can {V} the {N} , haha",
        "the {N} told me a joke",
        "knock knock , it is the {N}",
        "why did the {N} cross the road",
        "{B} plus {T} equals comedy",
    ),
    FILLER: ("good question", "let me think", "sure thing", "that is a nice plan", "many people ask this"),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "A": ("slowly", "quickly", "gently"),
    "M": ("five", "ten", "sixty"),
    "B": ("cat", "robot", "uncle"),
}
SENTENCE_END = "."

OBJECTIVES = ("helpfulness", "harmlessness", "humor")
OWN_KIND = {"helpfulness": HELP, "harmlessness": CAUTION, "humor": JOKE}
"""The kind of sentence that serves an objective; the corpus lets w leak into it."""

HELP_WORTH = {"it takes about {M} minutes": 0.5}
"""Help sentences that count for less than one."""
RISK = {False: 0.05, True: 0.25}
"""What one help sentence costs in harmlessness, by whether the topic is risky."""

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
HUMAN, ASSISTANT = "Human:", "Assistant:"
LEVELS = tuple(f"{tenths / 10:.1f}" for tenths in range(11))
MAX_NEW_TOKENS = 32
MAX_MODEL_LEN = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSpec:
    """Who writes the text the starting policy imitates."""

    leak: float = 1.0
    """How much w shows in the text: the own kind of objective k gains weight 4 * leak * w_k."""
    num_sentences: tuple[int, ...] = (2, 3, 3, 4, 4)
    refusal_share: float = 0.25
    """Probability that a caution is a refusal instead."""
    redraws: int = 4
    """Attempts to avoid a template that was used before in the same response."""
    stray_topic: float = 0.2
    """Probability that a sentence speaks of a random topic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSpec:
    """A small Llama, and how it is fitted."""

    hidden_size: int
    num_layers: int = 2
    num_heads: int = 2
    intermediate_size: int
    learning_rate: float = 3e-3
    warmup_steps: int = 20
    """The rest of `Optimization` is as it stands there."""

    def architecture(self, **more: float) -> Architecture:
        return Architecture(
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            intermediate_size=self.intermediate_size,
            max_positions=MAX_MODEL_LEN,
            **more,
        )

    def optimization(self, steps: int, *, batch_size: int) -> Optimization:
        return Optimization(
            steps=steps,
            batch_size=batch_size,
            learning_rate=self.learning_rate,
            warmup_steps=min(self.warmup_steps, steps),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySpec(FitSpec):
    """Architecture, first weights and supervised fitting of the starting policy."""

    hidden_size: int = 64  # head dim 32: the smallest the CPU engine serves
    intermediate_size: int = 192
    embedding_std: float = 0.05
    linear_std: float = 0.05
    output_std: float = 0.025
    level_noise_std: float = 0.02
    level_direction_std: float = 0.15
    """The level tokens 0.0 ... 1.0 start on a line: without it some seeds never learn to read w."""
    steps: dict[int, int] = field(default_factory=lambda: {2: 350, 3: 600})
    """Optimizer steps, by the number of objectives."""
    batch_size: int = 64

    def steps_for(self, num_objectives: int) -> int:
        return self.steps.get(num_objectives, max(self.steps.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSpec(FitSpec):
    """Architecture and Bradley-Terry training of each reward model."""

    hidden_size: int = 48
    intermediate_size: int = 128
    num_prompts: int = 672
    responses_per_prompt: int = 8
    """All their pairs are compared; a response is read once for all of its comparisons."""
    heldout_fraction: float = 0.1
    label_sharpness: float = 3.0
    """Of the share of judges that prefer the better response, per unit of oracle score."""
    steps: int = 220
    prompts_per_step: int = 16
    members: int = 3
    """Further reward models of each objective for an ensemble, each fitted on half of the prompts."""
    init_std: float = 0.05
    template: str = "{prompt} Assistant: {response}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSpec:
    """Refuses a starting policy that cannot read w: such a policy never learns control afterwards."""

    min_spearman: float = 0.8
    prompts: int = 48
    samples: int = 2
    extra_fits: int = 2
    """How often to fit for half as many steps again before giving up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniatureSpec:
    corpus: CorpusSpec = CorpusSpec()
    policy: PolicySpec = PolicySpec()
    reward: RewardSpec = RewardSpec()
    gate: GateSpec = GateSpec()
