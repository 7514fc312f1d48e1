"""The `mi-epo` command. Before its arguments are read, nothing is imported but the standard library and this project.

Exit codes: 0 done, 1 failed, 2 bad input, 130/143 stopped by a signal.
"""

import argparse
import errno
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.console import CONSOLE
from orchestrator.errors import EXIT_BAD_INPUT, EXIT_FAILED
from orchestrator.packages import clash


def build_parser() -> argparse.ArgumentParser:
    import orchestrator.options as options  # which imports `rewards`, and that may be a file of the user's

    parser = options.Parser(
        prog="mi-epo", description="Train one language model that answers as a preference vector asks (MI-EPO on Ray)."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], int | None], what: str) -> argparse.ArgumentParser:
        """Called as `run` is."""
        parser = commands.add_parser(run.__name__[1:].replace("_", "-"), help=what)
        parser.set_defaults(run=run)
        parser.register("type", None, options.text)  # of what names no other type
        return parser

    def add_recipe(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("recipe", metavar="RECIPE", type=options.readable, help="YAML file, see deploy/recipes/")
        parser.add_argument("overrides", metavar="section.key=value", nargs="*", help="dotted overrides of the recipe")

    train = command(_train, "train a policy; evaluates before and after")
    add_recipe(train)
    train.add_argument("--run-dir", type=options.folder, help="folder of the run (default: runs/NAME-TIME)")
    train.add_argument("--resume", action="store_true", help="go on with the run in --run-dir under a changed recipe")
    train.add_argument(
        "--smoke", action="store_true", help="three steps on CPU with tiny random models: does the recipe fit together"
    )

    plan = command(_plan, "check everything, print placement, batch arithmetic, memory and time; start nothing")
    add_recipe(plan)
    plan.add_argument(
        "--live", action="store_true", help="ask the running cluster (cluster.address or RAY_ADDRESS) for its nodes"
    )

    plan.add_argument("--device", metavar="NAME", help="plan for GPUs of this name, such as h100, not for this machine")
    plan.add_argument("--gpus", type=options.count, metavar="N", help="how to divide so many of them")

    evaluate = command(_evaluate, "the preference grid on held-out prompts: table, JSON, plots")
    evaluate.add_argument("target", metavar="RUN_OR_MODEL", type=options.path)
    evaluate.add_argument(
        "--recipe", metavar="R", type=options.readable, help="recipe to evaluate by (default: the run's own)"
    )
    evaluate.add_argument("--output", type=options.folder, help="folder to write (default: RUN_OR_MODEL/evaluation)")

    compare = command(_compare, "the same work for every method and seed; or runs that are there: table, plots")
    compare.add_argument(
        "recipe", metavar="RECIPE", type=options.readable, help="YAML file, or the first of several runs"
    )
    compare.add_argument("overrides", metavar="section.key=value", nargs="*", help="of the recipe; or the other runs")
    compare.add_argument("--methods", help="comma-separated, each METHOD or METHOD@section.key=value (default: all)")
    compare.add_argument("--seeds", help="comma-separated (default: 0,1,2)")
    compare.add_argument("--beta-c", help="comma-separated; each method is compared at its own best of them")
    compare.add_argument("--learning-rate", help="the same for the methods without beta_c")
    compare.add_argument("--tune-seed", type=options.seed, help="of the runs that choose these (default: the next one)")
    compare.add_argument("--sweep", metavar="section.key=V,V,...", help="also the first method with each of the values")
    compare.add_argument("--jobs", type=int, help="runs at a time (default: 1; on a Ray cluster, as many as have room)")
    compare.add_argument(
        "--output", type=options.folder, help="folder (default: comparisons/NAME); finished runs in it are kept"
    )
    compare.add_argument("--quick", action="store_true", help="two methods, one seed, 20 updates: does it work at all")

    results = command(_results, "write the page of one or more comparisons from their results.json")
    results.add_argument("files", metavar="RESULTS.json", type=options.path, nargs="+")
    results.add_argument("--output", type=options.file, required=True, help="markdown; its figures are put beside it")

    bench = command(_bench, "how fast is this machine with it: ratios against torch, vLLM and TRL, in one run")
    bench.add_argument("--output", type=options.file, help="also write the outcomes as a page (markdown)")
    bench.add_argument("--folder", type=options.folder, help="outcomes, logs, models (default: runs/bench)")
    bench.add_argument("--parts", help="comma-separated; the outcomes of the others are kept (default: all)")
    bench.add_argument("--trl", metavar="DIR", type=options.path, help="where pip install --target put TRL")
    bench.add_argument("--quick", action="store_true", help="everything at the smallest size: does it work at all")
    bench.add_argument("--part", help=argparse.SUPPRESS)  # what a process of it does

    generate = command(_generate, "talk to the steered policy")
    generate.add_argument("target", metavar="RUN_OR_MODEL", type=options.path)
    asked = generate.add_mutually_exclusive_group(required=True)
    weight = "weight of one objective; repeat for each"
    asked.add_argument("--prefer", metavar="NAME=W", action="append", help=weight)
    asked.add_argument("--sweep", action="store_true", help="under every vector of the evaluation grid")
    how = generate.add_mutually_exclusive_group()
    how.add_argument("--prompt", help="one prompt (default: one a line from standard input)")
    how.add_argument("--chat", action="store_true", help="a dialogue; /prefer NAME=W ... changes w, /new starts over")
    generate.add_argument("--seed", type=options.seed, default=0)
    generate.add_argument("-n", "--num-responses", type=options.count, default=1, help="answers per prompt")
    for name, kind in (("temperature", float), ("top-p", float), ("max-new-tokens", int)):
        generate.add_argument(f"--{name}", type=kind, help="default: as trained")

    miniature = command(_miniature, "build the self-contained miniature task")
    miniature.add_argument("directory", metavar="DIR", type=options.folder)
    miniature.add_argument("--objectives", default="helpfulness,harmlessness", help="comma-separated, in order")
    miniature.add_argument("--seed", type=options.seed, default=0)

    init = command(_init, "write a recipe, two rewards and twenty prompts to begin with")
    init.add_argument("directory", metavar="DIR", type=options.folder)
    init.add_argument("--model", metavar="M", help="model to steer: a folder, a hub id, or smollm2 (default: a toy)")

    for run, what in (
        (_fit_policy, "a starting policy by supervised training"),
        (_fit_reward, "a reward model on pairs"),
    ):
        command(run, f"fit {what}").add_argument("config", metavar="CONFIG", type=options.path)

    prepare = command(_prepare, "prompts and supervised rows from public preference data")
    prepare.add_argument(
        "source",
        metavar="SOURCE",
        type=options.readable,
        help="JSONL (.gz), datasets folder, or hub:NAME:DATA_DIR:SPLIT",
    )
    prepare.add_argument(
        "directory", metavar="DIR", type=options.folder, help="new: prompts/{train,heldout}.jsonl and sft.jsonl"
    )
    prepare.add_argument(
        "--format", choices=("transcripts", "saferlhf"), help="of HH-RLHF (default: transcripts) or of PKU-SafeRLHF"
    )
    prepare.add_argument("--train", type=int, metavar="N", help="prompts to train on (default: all that are left)")
    prepare.add_argument("--heldout", type=int, metavar="M", help="prompts to evaluate on (default: 200)")
    prepare.add_argument(
        "--multi-turn", choices=("skip", "keep"), help="transcripts of more than one human turn (default: skip)"
    )
    prepare.add_argument("--seed", type=int, help="draws the split, the order and the vectors (default: 0)")
    prepare.add_argument(
        "--objectives", metavar="A,B", help="in the recipe's order (default: helpfulness,harmlessness)"
    )
    prepare.add_argument("--alpha", type=float, help="Dirichlet that vectors are drawn from (default: 1, uniform)")
    prepare.add_argument("--decimals", type=int, help="digits of a weight after the point (default: 1)")
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Overrides may stand before and after options; argparse alone takes only the first group of them."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(arguments, "overrides") or any(item.startswith("-") for item in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    if problem := clash(Path.cwd()):  # before anything is imported that might not be ours
        print(f"mi-epo: {problem}", file=sys.stderr)
        return EXIT_BAD_INPUT
    arguments = parse_arguments(argv)
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # where a user's own scorers lie; the console script leaves it out, Ray passes it on
    try:
        return arguments.run(arguments) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:
        CONSOLE.close()
        return explain(error)
    finally:
        CONSOLE.close()


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def explain(error: Exception) -> int:
    """One line for what a person can act on; a traceback only for what is a defect of ours."""
    from actors.types import RolloutError
    from learner.types import LearnerError
    from orchestrator.errors import BadInput, RunFailed
    from rewards.scorers import ScorerError
    from rewards.simplex import PreferenceError

    cause = getattr(error, "cause", None) or error  # Ray wraps what an actor raised
    if isinstance(cause, OSError) and cause.errno in DISK_ERRORS:
        cause = RunFailed(f"{cause.filename or 'a file'}: cannot be written: {cause.strerror}")
    if isinstance(cause, PreferenceError):  # of a prompt that none of the checks before a run has rendered
        cause = BadInput(str(cause))
    if not isinstance(cause, BadInput | RunFailed | RolloutError | LearnerError | ScorerError):
        raise error
    print(f"mi-epo: {cause}", file=sys.stderr)
    return EXIT_BAD_INPUT if isinstance(cause, BadInput) else EXIT_FAILED


def _train(arguments: argparse.Namespace) -> int:
    from learner.methods import Merger, make_method
    from orchestrator.errors import BadInput
    from orchestrator.recipes import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.resume and arguments.run_dir is None:
        raise BadInput("--resume: needs --run-dir, the folder of the run to continue")
    if arguments.smoke:
        from orchestrator.tasks.smoke import smoke_recipe

        recipe = smoke_recipe(recipe, Path(".cache") / "smoke" / recipe.name)
    run_dir = arguments.run_dir or Path("runs") / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if isinstance(make_method(recipe.method), Merger):
        from orchestrator.run.soups import train_parts

        code = train_parts(recipe, run_dir, resume=arguments.resume, say=CONSOLE.say)
    else:
        from orchestrator.bench.report import draw_figures
        from orchestrator.run.train import train

        code = train(recipe, run_dir, resume=arguments.resume, say=CONSOLE.say, draw=draw_figures)
    if code == 0:
        _tell(run_dir)
    else:
        _leave(code)
    return code


def _leave(code: int) -> None:
    """End the process of a stopped run, in which all is written and Ray is shut down.

    Symptom without it: now and then the process stays for a minute after its last word. Cause: what Ray's threads were
    waiting for when a stop during start-up ended it. Delete when `ray.shutdown` leaves nothing to be waited for.
    """
    CONSOLE.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _tell(run_dir: Path) -> None:
    """Write the report, and say the table before and after."""
    from orchestrator.bench.report import write_report

    colored = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    report, table = write_report(run_dir, colored=colored)
    CONSOLE.say(f"{table}\nreport  {report}")


def _plan(arguments: argparse.Namespace) -> None:
    from orchestrator.errors import BadInput
    from orchestrator.plan import plan
    from orchestrator.recipes import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    planned = plan(recipe, live=arguments.live, device=arguments.device, gpus=arguments.gpus)
    print(planned.text, flush=True)
    if planned.refusals:
        raise BadInput("\n".join(planned.refusals))


def _evaluate(arguments: argparse.Namespace) -> None:
    from orchestrator.recipes import load_recipe
    from orchestrator.run.evaluation_run import evaluate

    recipe = load_recipe(arguments.recipe) if arguments.recipe else None
    _tell(evaluate(arguments.target, recipe, arguments.output, say=CONSOLE.say))


def _compare(arguments: argparse.Namespace) -> None:
    if Path(arguments.recipe).is_dir():
        from orchestrator.bench.overlay import overlay

        overlay([Path(run) for run in (arguments.recipe, *arguments.overrides)], arguments.output, say=CONSOLE.say)
        return
    from learner.methods import METHODS
    from orchestrator.bench.compare import Question, compare
    from orchestrator.errors import BadInput

    def numbers(option: str, text: str, kind: type) -> tuple:
        try:
            return tuple(kind(item) for item in text.split(","))
        except ValueError:
            raise BadInput(f"{option}: must be numbers with commas between them, got {text!r}") from None

    key, equals, values = (arguments.sweep or "").partition("=")
    if arguments.sweep and not (key and equals):
        raise BadInput(f"--sweep: must read section.key=value,value,..., got {arguments.sweep!r}")
    methods = tuple(arguments.methods.split(",")) if arguments.methods else tuple(METHODS)
    question = Question(
        methods=methods[:2] if arguments.quick and not arguments.methods else methods,
        seeds=numbers("--seeds", arguments.seeds or ("0" if arguments.quick else "0,1,2"), int),
        grids={
            knob: numbers(option, text, float)
            for knob, option, text in (
                ("beta_c", "--beta-c", arguments.beta_c),
                ("learning_rate", "--learning-rate", arguments.learning_rate),
            )
            if text
        },
        tune_seed=arguments.tune_seed,
        sweep=(key, numbers("--sweep", values, float)) if arguments.sweep else None,
        jobs=arguments.jobs,
        quick=arguments.quick,
    )
    compare(question, arguments.recipe, arguments.overrides, arguments.output, say=CONSOLE.say)


def _results(arguments: argparse.Namespace) -> None:
    from orchestrator.bench.cells import Results
    from orchestrator.bench.document import write_document
    from orchestrator.recipes import read_record

    print(write_document([read_record(Results, file) for file in arguments.files], arguments.output))


def _bench(arguments: argparse.Namespace) -> int:
    from orchestrator.bench.speed.bench import Asked, bench

    return bench(
        Asked(
            folder=arguments.folder or Path("runs") / "bench",
            parts=arguments.parts and tuple(arguments.parts.split(",")),
            part=arguments.part,
            output=arguments.output,
            quick=arguments.quick,
            trl=arguments.trl,
        )
    )


def _generate(arguments: argparse.Namespace) -> None:
    from orchestrator.run.talk import Wish, talk

    names = ("temperature", "top_p", "max_new_tokens")
    wish = Wish(
        target=arguments.target,
        prefer=arguments.prefer,
        prompt=arguments.prompt,
        chat=arguments.chat,
        count=arguments.num_responses,
        seed=arguments.seed,
        sampling={name: value for name in names if (value := getattr(arguments, name)) is not None},
    )
    talk(wish, sys.stdin, say=CONSOLE.say)


def _miniature(arguments: argparse.Namespace) -> None:
    from orchestrator.tasks.miniature.build import build_miniature

    objectives = tuple(name.strip() for name in arguments.objectives.split(","))
    build_miniature(arguments.directory, objectives=objectives, seed=arguments.seed, progress=CONSOLE.say)
    print(arguments.directory)


def _init(arguments: argparse.Namespace) -> None:
    from orchestrator.tasks.starter.starter import write_starter

    for file in write_starter(arguments.directory, arguments.model):
        print(file)


def _fit_policy(arguments: argparse.Namespace) -> None:
    from orchestrator.tasks.fitting.devices import leave_one_gpu

    leave_one_gpu(os.environ)
    from orchestrator.tasks.fitting.supervised import run_policy_fit

    CONSOLE.say(str(run_policy_fit(arguments.config, CONSOLE.say)))


def _fit_reward(arguments: argparse.Namespace) -> None:
    from orchestrator.tasks.fitting.devices import leave_one_gpu

    leave_one_gpu(os.environ)
    from orchestrator.tasks.fitting.bradley_terry import run_reward_fit

    CONSOLE.say(str(run_reward_fit(arguments.config, CONSOLE.say)))


def _prepare(arguments: argparse.Namespace) -> None:
    from orchestrator.tasks.dialogues.prepare import prepare, read_options

    objectives = arguments.objectives and tuple(name.strip() for name in arguments.objectives.split(","))
    options = read_options({**vars(arguments), "objectives": objectives})
    prepare(arguments.source, arguments.directory, options, progress=CONSOLE.say)
