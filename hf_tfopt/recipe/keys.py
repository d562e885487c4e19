"""What one pre-training run is: every choice a typed key, checked before anything is built.

A recipe is a YAML file, a preset's name, or keyword arguments; `load_recipe` lays the keys given on
the command line over it. Two settings that cannot both hold, or one that nothing would read, are an
error: no key is silently without effect.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_tfopt.data.masking_rule import UNITS
from hf_tfopt.recipe.loading import load
from hf_tfopt.recipe.model_keys import HOST_ATTENTIONS, MODEL_SIZES, ModelKeys, is_saved_model
from hf_tfopt.recipe.rates import USUAL_RATES
from hf_tfopt.recipe.teacher_keys import OF_TEACHER, TeacherKeys
from hf_tfopt.recipe.training_keys import RATES_OVER_TIME, TrainingKeys, split_seed_key
from hf_tfopt.recipe.typed_values import (
    INSIDE_UNIT,
    POSITIVE,
    at_least,
    key,
    one_of,
)

OBJECTIVES = ("mlm", "mlm+nsp", "mlm+sop")
EVAL_FRACTION = 0.05  # where a recipe does not say it
TEXT_UNITS = ("paragraph", "line", "file")
ATTENTIONS = ("unpadded", *HOST_ATTENTIONS)
# With a corpus of its own, and with pairs of its texts, these keys of a preset mean nothing.
_SETS_ASIDE = {
    "tokenizer": ("vocab_size",),
    "objective": ("packing", "teacher", *OF_TEACHER),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusKeys(ModelKeys):
    """The model, its text and what it is to guess."""

    model: str = key("bert", "an architecture to build, or a folder or Hub name to go on from")
    initialization: str | None = key(
        None,
        "a new model's words: random, or with their frequencies and company in the corpus",
        one_of("random", "corpus"),
    )
    attention: str = key("unpadded", "how attention is computed", one_of(*ATTENTIONS))

    corpus: str = key("embedded", "embedded, a text file, folder or glob, or a datasets name")
    text_column: str = key("text", "the column that holds the text")
    text_unit: str = key("paragraph", "a document of a .txt file", one_of(*TEXT_UNITS))
    max_documents: int | None = key(None, "a sample of so many documents", at_least(2))
    eval_fraction: float | None = key(
        None,
        f"documents held out, where the corpus has no held-out split; none: {EVAL_FRACTION}",
        INSIDE_UNIT,
    )
    split_seed: int | None = split_seed_key()
    tokenizer: str | None = key(None, "a folder or Hub name; none: the model's, or a new WordPiece")
    vocab_size: int | None = key(None, "words of a new tokenizer", POSITIVE)
    max_length: int = key(128, "tokens of the longest example, specials included", at_least(8))
    packing: bool | None = key(None, "several whole examples in one row instead of padding")

    objective: str = key("mlm", "masked words, alone or with pairs of texts", one_of(*OBJECTIVES))
    masking_unit: str = key("token", "what is masked as a whole", one_of(*UNITS))
    masking_probability: float = key(0.3, "share of the tokens to predict", INSIDE_UNIT)
    eval_masking_probability: float = key(0.15, "the same share in evaluation", INSIDE_UNIT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(TrainingKeys, TeacherKeys, CorpusKeys):
    """One pre-training run, from the text to the learning rate; frozen, and valid if it exists.

    Raises:
        ValueError: as `TrainingKeys`; sizes that no model can have.
    """

    optimizer: str = key("muon", "a name of the optimizers' table")
    schedule: str = key(
        "warmup_stable_decay", "the learning rate over time", one_of(*RATES_OVER_TIME)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_sizes(self.max_length)
        self.check_teacher()

    def conditional_keys(self) -> dict[str, tuple[bool, Any, str]]:
        """Those of training, and those of a new model or tokenizer."""
        new_tokenizer = self.tokenizer is None and not self.continues
        size = (not self.continues, None, "where a new model is built")
        words_alone = "by the objective mlm: pairs are not packed"
        taught = self.teacher is not None
        return {
            **super().conditional_keys(),
            "learning_rate": (True, USUAL_RATES[self.optimizer], ""),
            "packing": (self.objective == "mlm", True, words_alone),
            "eval_fraction": (True, EVAL_FRACTION, ""),
            "vocab_size": (new_tokenizer, 8192, "where a new tokenizer is trained"),
            "output_dir": (True, f"runs/{self.preset or 'run'}", ""),
            "initialization": (not self.continues, "corpus", "where a new model is built"),
            **dict.fromkeys(MODEL_SIZES, size),
            "layers": (self.continues, None, "where model is a trained one"),
            "teacher": (self.objective == "mlm", None, "by the objective mlm"),
            "temperature": (taught, 2.0, "with a teacher"),
            "alpha": (taught, 0.5, "with a teacher"),
            "divergence": (taught, "kl", "with a teacher"),
            "features": (taught, None, "with a teacher"),
        }

    def selectable_names(self) -> tuple[str, ...]:
        """What an evaluation tells of masked words, and of pairs of texts."""
        pairs = {"mlm+nsp": "next_sentence_accuracy", "mlm+sop": "sentence_order_accuracy"}
        alone = ("loss", "perplexity")
        return (*alone, pairs[self.objective]) if self.objective in pairs else alone

    @staticmethod
    def sets_aside(changed: Mapping[str, Any]) -> set[str]:
        """Those of training; with a tokenizer, model or pairs of its own, what these replace."""
        aside = {name for given in changed for name in _SETS_ASIDE.get(given, ())}
        if "model" in changed and is_saved_model(str(changed["model"])):
            aside |= {*MODEL_SIZES, "vocab_size", "initialization"}
        elif "model" in changed:
            aside.add("layers")
        if changed.get("teacher", "") is None:
            aside |= {*OF_TEACHER}
        return aside | TrainingKeys.sets_aside(changed)


def load_recipe(source: str | Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """The pre-training recipe of a YAML file or a preset; see `loading.load`."""
    return load(Recipe, source, overrides)
