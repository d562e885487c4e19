"""The learning rate that each optimizer is usually begun with, for small masked language models."""

from collections.abc import Mapping

# those of one update rule have one rate
USUAL_RATES: Mapping[str, float] = {
    **dict.fromkeys(("adam", "adamw", "adamw_8bit", "adamw_8bit_torchao", "adamw_4bit"), 2e-3),
    "adafactor": 2e-3,
    "lamb": 3e-2,
    **dict.fromkeys(("lion", "lion_8bit"), 1e-3),
    "muon": 3e-2,
    "schedule_free": 5e-3,
    "sgd": 0.1,
}
