"""Text -> documents -> rows -> batch; and the table of collators."""

from hf_tfopt.registry import Lazy, Registry

COLLATORS = Registry(
    "collator",
    {
        "multitask": Lazy("hf_tfopt.data.multitask_collator:MultitaskCollator"),
        "causal_lm": Lazy("hf_tfopt.data.causal_collator:CausalLMCollator"),
        "masked_lm": Lazy("hf_tfopt.data.collators:MaskedLMCollator"),
    },
)
