"""A script's command line: `[RECIPE] [--key value ...] [--resume]` -> a recipe, or an answer."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_tfopt.recipe.distillation_keys import DistillationRecipe, load_distillation
from hf_tfopt.recipe.keys import Recipe, load_recipe
from hf_tfopt.recipe.training_keys import TrainingKeys
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
    source, overrides, is_resumed = _words(arguments)
    return load_recipe(source or default, overrides), is_resumed


def distillation_from_command_line(arguments: Sequence[str]) -> tuple[DistillationRecipe, bool]:
    """The same for a distillation, which needs no file; raises ValueError likewise."""
    source, overrides, is_resumed = _words(arguments)
    return load_distillation(source, overrides), is_resumed


def _words(arguments: Sequence[str]) -> tuple[str | None, Mapping[str, str], bool]:
    sources, overrides, switches = parse_flags(arguments, switches=("resume",))
    if len(sources) > 1:
        raise ValueError(f"one recipe at a time, got {', '.join(sources)}")
    return sources[0] if sources else None, overrides, "resume" in switches


def recipe_or_exit(
    arguments: Sequence[str],
    usage: str,
    read: Callable[[Sequence[str]], tuple[TrainingKeys, bool]] = recipe_from_command_line,
    keys_of: type[TrainingKeys] = Recipe,
) -> tuple[Any, bool]:
    """The same for a script: `--help` and mistakes end the program with an answer, not a traceback.

    It is to be called before torch is imported, so that the answer comes at once.

    Args:
        arguments: the command line, without the program's name.
        usage: what `--help` prints before the keys.
        read: one of the two above.
        keys_of: the recipe's class, for `--help`.
    """
    if {"-h", "--help"} & {*arguments}:
        keys = {name: text for name, text in described(keys_of).items() if name != "preset"}
        lines = (f"  --{name}: {text}" for name, text in keys.items())
        print(usage.strip(), "\nKeys:", *lines, sep="\n")
        sys.exit()
    try:
        return read(arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
