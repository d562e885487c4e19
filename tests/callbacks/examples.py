"""One of every callback that the contract tests train with, at settings that act in four steps.

A line for each entry of `CALLBACKS`; those that measure do so in every step.
"""

from collections.abc import Callable

from transformers import TrainerCallback

import hf_tfopt as tfo

EXAMPLES: dict[str, Callable[[], TrainerCallback]] = {
    "group_rates": lambda: tfo.GroupRates(),
}
# Callbacks of the host's own kind, whose tests are their own.
PLAIN = {"adaptive_weight_decay", "dataset_epochs", "evaluation_weights"}
