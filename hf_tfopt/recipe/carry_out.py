"""What a command line asks for, from the first run to the last: one, several seeds, a search."""

import sys
from collections.abc import Callable
from typing import Any

from hf_tfopt.recipe.command_line import Command
from hf_tfopt.recipe.incomplete import IncompleteRunError
from hf_tfopt.recipe.search import searched
from hf_tfopt.recipe.seeds import over_seeds


def carry_out(
    command: Command[Any],
    prepare: Callable[[Any, bool], Any],
    run: Callable[[Any], dict[str, float]],
) -> dict[str, float]:
    """Do what a command line asks for; returns the final numbers, as metrics.json has them.

    One run; or one for each of the recipe's `seeds`, or trials of its `search` before it.

    Args:
        command: from `read_command`.
        prepare: recipe, whether it is gone on with -> all that `run` needs, checked.
        run: trains, and leaves the folder.

    Raises:
        ValueError: for everything that cannot be, before training begins.
    """

    def once(
        recipe: Any, is_resumed: bool, ready: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        prepared = prepare(recipe, is_resumed)
        ready()
        return run(prepared)

    recipe, is_resumed = command
    if recipe.search is not None:
        recipe, is_resumed = searched(recipe, is_resumed, once), True
    if recipe.seeds is not None:
        return over_seeds(recipe, is_resumed, once)
    return once(recipe, is_resumed)


def carry_out_or_exit(
    command: Command[Any],
    prepare: Callable[[Any, bool], Any],
    run: Callable[[Any], dict[str, float]],
) -> None:
    """The same for a script: the user's mistakes end the program with one line.

    What goes wrong while it trains keeps its traceback.
    """
    is_training = False

    def prepared(recipe: Any, is_resumed: bool) -> Any:
        nonlocal is_training
        is_training = False
        found = prepare(recipe, is_resumed)
        is_training = True
        return found

    try:
        carry_out(command, prepared, run)
    except IncompleteRunError as error:
        sys.exit(f"error: {error}")
    except (ValueError, OSError, ImportError) as error:  # the user's: one line tells it better
        if is_training:
            raise
        sys.exit(f"error: {error}")
