"""A script's command line: `[RECIPE] [--key value ...] [--resume]` -> a recipe, or an answer."""

import sys
from collections.abc import Sequence

from hf_tfopt.recipe.keys import Recipe, load_recipe
from hf_tfopt.recipe.typed_values import described, parse_flags


def recipe_from_command_line(
    arguments: Sequence[str], default: str = "bert-mini"
) -> tuple[Recipe, bool]:
    """The recipe of `[RECIPE] [--key value ...] [--resume]`, and whether to resume.

    Args:
        arguments: the command line, without the program's name.
        default: the preset for when no recipe is named.

    Raises:
        ValueError: as `load_recipe`, or for a malformed command line.
    """
    sources, overrides, switches = parse_flags(arguments, switches=("resume",))
    if len(sources) > 1:
        raise ValueError(f"one recipe at a time, got {', '.join(sources)}")
    return load_recipe(sources[0] if sources else default, overrides), "resume" in switches


def recipe_or_exit(arguments: Sequence[str], usage: str) -> tuple[Recipe, bool]:
    """The same for a script: `--help` and mistakes end the program with an answer, not a traceback.

    It is to be called before torch is imported, so that the answer comes at once.

    Args:
        arguments: the command line, without the program's name.
        usage: what `--help` prints before the keys.
    """
    if {"-h", "--help"} & {*arguments}:
        keys = {name: text for name, text in described(Recipe).items() if name != "preset"}
        lines = (f"  --{name}: {text}" for name, text in keys.items())
        print(usage.strip(), "\nKeys:", *lines, sep="\n")
        sys.exit()
    try:
        return recipe_from_command_line(arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
