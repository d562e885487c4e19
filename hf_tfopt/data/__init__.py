"""Text -> documents -> rows -> batch; and the tables of collators and samplers."""

from hf_tfopt.registry import Lazy, Registry

COLLATORS = Registry(
    "collator",
    {
        "multitask": Lazy("hf_tfopt.data.multitask_collator:MultitaskCollator"),
        "causal_lm": Lazy("hf_tfopt.data.causal_collator:CausalLMCollator"),
        "classification": Lazy("hf_tfopt.data.classification_collator:ClassificationCollator"),
        "masked_lm": Lazy("hf_tfopt.data.collators:MaskedLMCollator"),
    },
)

SAMPLERS = Registry(
    "sampler",
    {
        "difficulty": Lazy("hf_tfopt.data.difficulty_curriculum:DifficultyCurriculum"),
        "token_budget": Lazy("hf_tfopt.data.token_budget:TokenBudget"),
        "batch_size_warmup": Lazy("hf_tfopt.data.batch_size_warmup:BatchSizeWarmup"),
    },
)
