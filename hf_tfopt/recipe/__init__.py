"""A recipe: every choice of one run, typed and checked; and what the host needs of it.

`keys` has the recipe and how it is loaded, `typed_values` what a value may be, `command_line` a
script's flags; `masked_lm` makes its model and tokenizer, `host_arguments` the TrainingArguments.
"""

from hf_tfopt.recipe.keys import Recipe, load_recipe

__all__ = ["Recipe", "load_recipe"]
