"""`hf-tfopt`: the small tools around a run. Heavy imports wait until a command needs them."""

import argparse
import sys
from collections.abc import Mapping, Sequence

from hf_tfopt.registry import Lazy, check_name

_TABLES = {
    "presets": Lazy("hf_tfopt.presets:PRESETS"),
    "optimizers": Lazy("hf_tfopt.optimizers:OPTIMIZERS"),
    "losses": Lazy("hf_tfopt.losses:LOSSES"),
    "objectives": Lazy("hf_tfopt.objectives:OBJECTIVES"),
    "features": Lazy("hf_tfopt.objectives:FEATURES"),
    "metrics": Lazy("hf_tfopt.metrics:METRICS"),
    "collators": Lazy("hf_tfopt.data:COLLATORS"),
    "samplers": Lazy("hf_tfopt.data:SAMPLERS"),
    "surgeries": Lazy("hf_tfopt.surgery:SURGERIES"),
    "schedules": Lazy("hf_tfopt.schedules:SCHEDULES"),
}
_RECIPE_KEYS = "keys"
_RECIPE = Lazy("hf_tfopt.recipe.keys:Recipe")
_DESCRIBED = Lazy("hf_tfopt.recipe.typed_values:described")
_READ_ANY_COMMAND = Lazy("hf_tfopt.recipe.scripts:read_any_command")
_EXPLAIN = Lazy("hf_tfopt.recipe.explanation:explain")
_WRITE_REPORT = Lazy("hf_tfopt.report:write_report")
_WRITE_CARD = Lazy("hf_tfopt.hub:write_card")
_PUSH = Lazy("hf_tfopt.hub:push_command")
_WATCH = Lazy("hf_tfopt.watch:watch")
_LAB_USAGE = Lazy("hf_tfopt.lab.settings:usage")
_LAB_REQUEST = Lazy("hf_tfopt.lab.settings:read_request")
_LAB = Lazy("hf_tfopt.lab.commands:lab")


def _summary(entry: object) -> str:
    """The first line of what an entry says about itself."""
    text = getattr(entry, "summary", None) or getattr(entry, "__doc__", None) or ""
    line = str(text).strip().split("\n")[0]
    script = getattr(entry, "script", None)
    return f"{script}: {line}" if script else line


def _entries(kind: str) -> Mapping[str, str]:
    if kind == _RECIPE_KEYS:
        return _DESCRIBED.load()(_RECIPE.load())
    table = _TABLES[kind].load()
    return {name: _summary(table[name]) for name in table}


def _list(arguments: argparse.Namespace) -> None:
    known = (*_TABLES, _RECIPE_KEYS)
    for kind in arguments.kinds:
        check_name("kind", kind, known)
    for kind in arguments.kinds or known:
        entries = _entries(kind)
        width = max(map(len, entries), default=0)
        print(f"{kind}:")
        for name, text in entries.items():
            print(f"  {name:{width}}  {text}")


def _explain(arguments: argparse.Namespace) -> None:
    recipe, _ = _READ_ANY_COMMAND.load()(arguments.words)
    print(*_EXPLAIN.load()(recipe), sep="\n")


def _report(arguments: argparse.Namespace) -> None:
    print(_WRITE_REPORT.load()(arguments.runs, arguments.output))


def _watch(arguments: argparse.Namespace) -> None:
    _WATCH.load()(arguments.run, arguments.once, arguments.every)


def _card(arguments: argparse.Namespace) -> None:
    print(_WRITE_CARD.load()(arguments.run))


def _push(arguments: argparse.Namespace) -> None:
    _PUSH.load()(arguments.run, arguments.repository, arguments.public, arguments.dry_run)


def _lab(arguments: argparse.Namespace) -> None:
    if not arguments.words or {"-h", "--help"} & {*arguments.words}:
        print(_LAB_USAGE.load()())
        return
    request = _LAB_REQUEST.load()(arguments.words)  # mistakes are answered before torch is there
    _LAB.load()(request)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-tfopt", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    lists = commands.add_parser("list", help="what there is: presets, optimizers, recipe keys ...")
    lists.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join((*_TABLES, _RECIPE_KEYS)))
    lists.set_defaults(command=_list)

    explain = commands.add_parser("explain", help="the parameter groups that a recipe trains")
    explain.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="[RECIPE] [--key value ...] [--script FILE.py]",
        help="as for the recipe's script: the preset's, or the one that the file names",
    )
    explain.set_defaults(command=_explain)

    report = commands.add_parser("report", help="make report.html of one run, or of several")
    report.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's output folder, finished or not"
    )
    report.add_argument("--output", metavar="FILE", help="the HTML file to write")
    report.set_defaults(command=_report)

    watch = commands.add_parser("watch", help="show a run in the terminal while it trains")
    watch.add_argument("run", metavar="RUN", help="a run's output folder; a stock Trainer's too")
    watch.add_argument("--once", action="store_true", help="show it as it is, and end")
    watch.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="between two looks"
    )
    watch.set_defaults(command=_watch)

    card = commands.add_parser("card", help="make the model card, README.md, of a run again")
    card.add_argument("run", metavar="RUN", help="a run's output folder")
    card.set_defaults(command=_card)

    push = commands.add_parser("push", help="put a run's model, card and record on the Hub")
    push.add_argument("run", metavar="RUN", help="a run's output folder, or any with a saved model")
    push.add_argument("repository", metavar="OWNER/NAME", help="made, and private, if not there")
    push.add_argument("--public", action="store_true", help="for everybody to see")
    push.add_argument(
        "--dry-run", action="store_true", help="tell what would go, and what was found in it"
    )
    push.set_defaults(command=_push)

    lab = commands.add_parser("lab", help="compare optimizers or schedules; find a learning rate")
    lab.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="{optimizers,schedules,lr-range} ...",
        help="`hf-tfopt lab` alone tells more",
    )
    lab.set_defaults(command=_lab)
    return parser


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command; argparse would take a first flag after `explain` for its own."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["explain"] and not {"-h", "--help"} & {*words}:
        return argparse.Namespace(command=_explain, words=words[1:])
    return _parser().parse_args(words)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; the user's mistakes end in one line on stderr and exit code 2."""
    arguments = _parsed(argv)
    try:
        arguments.command(arguments)
    except (ValueError, OSError) as error:
        print(f"hf-tfopt: {_told(error)}", file=sys.stderr)
        raise SystemExit(2) from error


def _told(error: Exception) -> str:
    """Of a file that cannot be read or written: which one, and why, without the error's number."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


if __name__ == "__main__":
    main()
