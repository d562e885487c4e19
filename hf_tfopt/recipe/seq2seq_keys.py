"""What one training of an encoder-decoder is: pairs of texts, model, tokenizer, generation."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hf_tfopt.metrics import score_keys
from hf_tfopt.recipe.model_keys import (
    HOST_ATTENTIONS,
    MODEL_SIZES,
    CheckpointingKeys,
    ModelKeys,
    is_saved_model,
)
from hf_tfopt.recipe.rates import USUAL_RATES
from hf_tfopt.recipe.training_keys import TrainingKeys, split_seed_key
from hf_tfopt.recipe.typed_values import (
    INSIDE_UNIT,
    POSITIVE,
    SHARE,
    at_least,
    key,
    listed,
    one_of,
)
from hf_tfopt.registry import check_name
from hf_tfopt.schedules import SCHEDULES

# What is measured where a recipe does not say it.
TEXT_METRICS = ("bleu", "chrf", "rouge", "exact_match")
USUAL_METRICS = {"translation": "bleu,chrf", "summarization": "rouge"}
LOSSES = ("loss", "perplexity")  # what every evaluation tells
_FINE_TUNING = 1 / 40  # of the rate that a new model begins with: AdamW's 2e-3 -> 5e-5
# What changes no weight: nothing that is selected by, or how the texts are that may be.
_AT_THE_END = ("test_samples", "eval_batch_size")
_GENERATES = ("num_beams", "max_new_tokens", "generation")
_NEW = (*MODEL_SIZES, "model_options", "vocab_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairKeys(CheckpointingKeys, ModelKeys):
    """The pairs of texts and the model that makes the one of the other."""

    task: str = key("translation", "as the Hub calls it", one_of(*USUAL_METRICS))
    model: str = key("marian", "an architecture to build, or a folder or Hub name to go on from")
    num_hidden_layers: int | None = key(
        None, "layers of the encoder, and as many of the decoder", POSITIVE
    )
    model_options: Mapping[str, Any] | None = key(
        None, "more of a new model's configuration: {activation_function: relu}"
    )
    attention: str | None = key(
        None, "how attention is computed; none: as the host has it", one_of(*HOST_ATTENTIONS)
    )
    tokenizer: str | None = key(None, "a folder or Hub name; none: the model's, or new byte pairs")
    vocab_size: int | None = key(None, "pieces of a new tokenizer", POSITIVE)

    train: str = key(
        "", "pairs: .csv, .tsv, .jsonl, .parquet, a folder, a datasets name:configuration, or dates"
    )
    eval: str | None = key(
        None, "held-out pairs; none: the validation split of train, or eval_fraction of its sources"
    )
    eval_fraction: float | None = key(None, "of the sources, where nothing else is", INSIDE_UNIT)
    split_seed: int | None = split_seed_key()
    test: str | None = key(
        None, "pairs for the final numbers; none: the test split of train, or the held-out pairs"
    )
    source_column: str = key(
        "source", "where the sources are; translation.en: the en in a column of mappings"
    )
    target_column: str = key("target", "where the targets are; translation.de")
    columns: str | None = key(None, "names of the columns of files without a heading: en,de")
    shared_examples: str = key(
        "refuse",
        "pairs that are trained on and held out: refuse, drop them from training, or keep them",
        one_of("refuse", "drop", "keep"),
    )
    incomplete_examples: str = key(
        "refuse",
        "rows without a source or a target: refuse or drop them",
        one_of("refuse", "drop"),
    )
    prefix: str = key("", "stands before each source: 'translate English to German: '")
    source_language: str | None = key(
        None, "as the tokenizer calls it, of one that knows languages: en_XX"
    )
    target_language: str | None = key(None, "the same of the targets: de_DE")
    max_source_length: int = key(128, "tokens of a source; longer ones are cut", at_least(2))
    max_target_length: int = key(128, "tokens of a target; longer ones are cut", at_least(2))

    label_smoothing: float = key(0.0, "share of the target that goes to all tokens", SHARE)
    metrics: str | None = key(
        None,
        "of the generated texts, with commas: bleu, chrf, rouge, exact_match; none: by the task",
    )
    eval_samples: int | None = key(
        None, "pairs that each evaluation generates for; none: it tells the loss alone", POSITIVE
    )
    test_samples: int | None = key(
        None, "pairs that texts are generated for at the end; none: all", POSITIVE
    )
    eval_batch_size: int | None = key(
        None, "pairs that are evaluated, or generated for, at a time; none: batch_size", POSITIVE
    )
    num_beams: int | None = key(None, "beams that generate; none: the model's own, or 1", POSITIVE)
    max_new_tokens: int | None = key(
        None, "the most tokens generated; none: max_target_length", POSITIVE
    )
    generation: Mapping[str, Any] | None = key(
        None, "more of it, by the host's names: {length_penalty: 0.6, no_repeat_ngram_size: 3}"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2SeqRecipe(TrainingKeys, PairKeys):
    """One training of an encoder-decoder, valid if it exists.

    The schedule `noam` is the original Transformer's: its rate is absolute, and learning_rate is a
    factor of it, 1 in the paper.

    Raises:
        ValueError: as `TrainingKeys`; without training pairs; sizes that no model can have; the
            best checkpoint by a number that no evaluation tells.
    """

    script = "finetune_seq2seq.py"

    schedule: str = key("linear", "the learning rate over time", one_of(*SCHEDULES))

    def __post_init__(self) -> None:
        self._fill_width_of_noam()
        super().__post_init__()
        if not self.train:
            raise ValueError("train: none given; it names pairs of texts: --train PATH")
        self._check_languages()
        self.check_sizes()
        self._check_generation()

    def conditional_keys(self) -> dict[str, tuple[bool, Any, str]]:
        """Those of training, of a new model, and of a new tokenizer."""
        is_new = not self.continues
        new_tokenizer = is_new and self.tokenizer is None
        return {
            **super().conditional_keys(),
            "learning_rate": (True, self._usual_rate(), ""),
            "num_train_epochs": (self.max_steps is None, 3.0, "where max_steps is not given"),
            **dict.fromkeys(_NEW, (is_new, None, "where a new model is built")),
            "vocab_size": (new_tokenizer, 8192, "where a new tokenizer is trained"),
            "eval_fraction": (self.eval is None, 0.05, "where eval is not given"),
            "max_new_tokens": (True, self.max_target_length, ""),
            "metrics": (True, USUAL_METRICS.get(self.task), ""),
            "output_dir": (True, f"runs/{self.preset or self.task}", ""),
        }

    def selectable_names(self) -> tuple[str, ...]:
        """The losses, and the numbers of texts where evaluations generate."""
        return (*LOSSES, *(score_keys(*self.metric_names()) if self.eval_samples else ()))

    def may_change_on_resume(self) -> tuple[str, ...]:
        """How texts are made too, unless the best checkpoint is chosen by them."""
        chosen = (self.select or LOSSES[0]).removeprefix("eval_")
        generates = _GENERATES if chosen in LOSSES else ()
        return (*super().may_change_on_resume(), *_AT_THE_END, *generates)

    @staticmethod
    def sets_aside(changed: Mapping[str, Any]) -> set[str]:
        """Those of training, and what nothing reads any more."""
        aside = {
            "eval_fraction": changed.get("eval") is not None,
            "metrics": "task" in changed,
            "select": "task" in changed or "metrics" in changed,
            "vocab_size": changed.get("tokenizer") is not None,
            "max_new_tokens": "max_target_length" in changed,
        }
        own = {name for name, is_aside in aside.items() if is_aside}
        if "train" in changed:  # other data
            own |= {"source_column", "target_column", "columns"}
        if "model" in changed:  # another architecture has other options, a trained model has all
            is_saved = is_saved_model(str(changed["model"]))
            own |= {*_NEW} if is_saved else {"model_options"}
        return own | TrainingKeys.sets_aside(changed)

    def _usual_rate(self) -> float:
        """What learning usually begins with: a factor of noam, or a rate."""
        if self.schedule == "noam":
            return 1.0
        usual = USUAL_RATES[self.optimizer]
        return usual * _FINE_TUNING if self.continues else usual / 2

    def _fill_width_of_noam(self) -> None:
        """The width that noam's rate is computed from, where it is the new model's own."""
        if self.schedule != "noam":
            return
        given = dict(self.schedule_options or {})
        width = given.get("d_model", self.hidden_size)
        if width is None:
            raise ValueError(
                "schedule noam: its rate depends on the model's width; give hidden_size, or "
                "schedule_options {d_model: WIDTH}"
            )
        if self.hidden_size not in (None, width):
            raise ValueError(
                f"schedule_options: d_model is {width}, but hidden_size {self.hidden_size}; leave "
                "d_model out, and it is the same"
            )
        object.__setattr__(self, "schedule_options", {**given, "d_model": width})

    def _check_languages(self) -> None:
        if (self.source_language is None) != (self.target_language is None):
            raise ValueError("source_language and target_language: give both or none")

    def _check_generation(self) -> None:
        """Keys of their own, and numbers that only generated texts have."""
        for name in self.metric_names():
            check_name("metric", name, TEXT_METRICS)
        for name in ("num_beams", "max_new_tokens", "max_length"):
            if name in (self.generation or {}):
                own = name.replace("max_length", "max_new_tokens")
                raise ValueError(f"generation: {name} has a key of its own, {own}; set that one")
        chosen = (self.select or LOSSES[0]).removeprefix("eval_")
        if chosen not in LOSSES and self.eval_samples is None:
            raise ValueError(
                f"select {self.select}: evaluations tell it only where they generate; give "
                "eval_samples, the number of pairs that they do it for"
            )

    def column_names(self) -> list[str] | None:
        """The names in `columns`."""
        return listed(self.columns)

    def metric_names(self) -> list[str]:
        """The names in `metrics`."""
        return [name for name in listed(str(self.metrics)) if name]
