"""What one training of a causal language model is: model, text, adapter, training."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_tfopt.recipe.keys import ATTENTIONS, EVAL_FRACTION, TEXT_UNITS
from hf_tfopt.recipe.model_keys import MODEL_SIZES, CheckpointingKeys, ModelKeys, is_saved_model
from hf_tfopt.recipe.rates import USUAL_RATES
from hf_tfopt.recipe.training_keys import TrainingKeys, split_seed_key
from hf_tfopt.recipe.typed_values import INSIDE_UNIT, POSITIVE, SHARE, at_least, key, listed, one_of

QUANTIZATIONS = ("nf4",)
DEFAULT_PRESET = "gpt-mini"
# A trained model is moved less than a new one, an adapter (begun at zero) less than that.
_OF_NEW_RATE = {"new": 1.0, "adapter": 1 / 10, "trained": 1 / 40}
_OF_DOCUMENTS = ("text_column", "text_unit")
_OF_ADAPTER = ("lora_alpha", "lora_dropout", "lora_targets", "merge_adapter", "quantization")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLMKeys(CheckpointingKeys, ModelKeys):
    """The model, its adapter, and the texts it learns to write."""

    model: str = key(
        "gpt2", "an architecture to build (gpt2, llama ...), or a folder or Hub name to go on from"
    )
    attention: str = key("unpadded", "how attention is computed", one_of(*ATTENTIONS))

    lora_rank: int | None = key(
        None, "train an adapter of this rank beside the weights (LoRA); none: train them", POSITIVE
    )
    lora_alpha: float | None = key(
        None, "lora_rank only: the adapter counts alpha / rank times", POSITIVE
    )
    lora_dropout: float | None = key(None, "lora_rank only: of the adapter's inputs", SHARE)
    lora_targets: str | None = key(
        None, "lora_rank only: names of linear layers, with commas; none: all but the head"
    )
    quantization: str | None = key(
        None, "lora_rank only: the weights themselves in 4 bits (QLoRA)", one_of(*QUANTIZATIONS)
    )
    merge_adapter: bool | None = key(
        None, "lora_rank only: leave a plain model, the adapter added to its weights"
    )

    corpus: str = key("embedded", "embedded, a text file, folder or glob, or a datasets name")
    text_column: str | None = key(None, "the column that holds the text")
    text_unit: str | None = key(None, "a document of a .txt file", one_of(*TEXT_UNITS))
    prompt_column: str | None = key(
        None, "the column of prompts, which are read and not learned; with completion_column"
    )
    completion_column: str | None = key(None, "the column of what is learned behind a prompt")
    messages_column: str | None = key(
        None, "the column of chats, in the tokenizer's chat template; the answers are learned"
    )
    max_documents: int | None = key(None, "a sample of so many documents or rows", at_least(2))
    eval_fraction: float | None = key(
        None,
        f"documents held out, where the corpus has no held-out split; none: {EVAL_FRACTION}",
        INSIDE_UNIT,
    )
    split_seed: int | None = split_seed_key()
    tokenizer: str | None = key(None, "a folder or Hub name; none: the model's, or a new BPE")
    vocab_size: int | None = key(None, "words of a new tokenizer", at_least(258))
    max_length: int = key(512, "tokens of the longest example, specials included", at_least(8))
    packing: bool = key(True, "several whole examples in one row instead of padding")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLMRecipe(TrainingKeys, CausalLMKeys):
    """One training of a causal language model; frozen, and valid if it exists.

    Raises:
        ValueError: as `TrainingKeys`; sizes that no model can have; an adapter of a new model; 4
            bits without an adapter; prompts without completions, or both beside chats.
    """

    script = "finetune_causal_lm.py"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_adapter()
        self._check_columns()
        self.check_sizes(self.max_length)

    @property
    def columns(self) -> dict[str, str]:
        """What instructions are read from: prompt and completion, or messages -> a column."""
        named = {
            "prompt": self.prompt_column,
            "completion": self.completion_column,
            "messages": self.messages_column,
        }
        return {name: column for name, column in named.items() if column is not None}

    def conditional_keys(self) -> dict[str, tuple[bool, Any, str]]:
        """Those of training, of a new model or tokenizer, of documents and of an adapter."""
        has_adapter = self.lora_rank is not None
        kind = "adapter" if has_adapter else "trained" if self.continues else "new"
        share = _OF_NEW_RATE[kind]
        new_tokenizer = self.tokenizer is None and not self.continues
        adapter = "with lora_rank"
        documents = "where no column of prompts or messages is named"
        above = super().conditional_keys()
        is_read, rate, words = above["adamw_learning_rate"]
        return {
            **above,
            "learning_rate": (True, USUAL_RATES[self.optimizer] * share, ""),
            "adamw_learning_rate": (is_read, rate * share, words),
            "vocab_size": (new_tokenizer, 8192, "where a new tokenizer is trained"),
            "eval_fraction": (True, EVAL_FRACTION, ""),
            "output_dir": (True, f"runs/{self.preset or 'causal-lm'}", ""),
            **dict.fromkeys(MODEL_SIZES, (not self.continues, None, "where a new model is built")),
            "text_column": (not self.columns, "text", documents),
            "text_unit": (not self.columns, "paragraph", documents),
            "lora_alpha": (has_adapter, 16.0, adapter),
            "lora_dropout": (has_adapter, 0.05, adapter),
            "lora_targets": (has_adapter, None, adapter),
            "merge_adapter": (has_adapter, False, adapter),
        }

    def selectable_names(self) -> tuple[str, ...]:
        """What an evaluation tells of the words."""
        return ("loss", "perplexity")

    @staticmethod
    def sets_aside(changed: Mapping[str, Any]) -> set[str]:
        """Those of training, and what a trained model, other columns or no adapter replace."""
        aside: set[str] = {"vocab_size"} if "tokenizer" in changed else set()
        if "model" in changed and is_saved_model(str(changed["model"])):
            aside |= {*MODEL_SIZES, "vocab_size"}
        if {"prompt_column", "messages_column"} & changed.keys():
            aside |= {*_OF_DOCUMENTS, "prompt_column", "completion_column", "messages_column"}
        if changed.get("lora_rank", 1) is None:
            aside |= {*_OF_ADAPTER}
        return aside | TrainingKeys.sets_aside(changed)

    def _check_adapter(self) -> None:
        """What can be trained: an adapter needs a trained model, 4-bit weights an adapter."""
        if self.quantization is not None and not self.continues:
            raise ValueError(
                f"quantization {self.quantization} of a new model ({self.model}): there are no "
                "weights yet; name a trained model's folder or Hub name, or leave it out"
            )
        if self.quantization is not None and self.lora_rank is None:
            raise ValueError(
                f"quantization {self.quantization} without lora_rank: weights of 4 bits are not "
                "trained, so nothing would be; give --lora_rank 16"
            )
        if self.lora_rank is not None and not self.continues:
            raise ValueError(
                f"lora_rank {self.lora_rank} with a new model ({self.model}): an adapter adapts "
                "what was learned; name a trained model's folder or Hub name (owner/name), or "
                "leave lora_rank out"
            )
        if self.push_to and self.lora_rank and not self.merge_adapter and Path(self.model).exists():
            raise ValueError(
                f"push_to with an adapter of {self.model}, a folder of this machine: nobody else "
                "could open it; push that model and name it as on the Hub, or give --merge_adapter"
            )

    def _check_columns(self) -> None:
        names = self.columns
        if "messages" in names and len(names) > 1:
            raise ValueError("messages_column: not beside prompt_column and completion_column")
        if len(names) == 1 and "messages" not in names:
            missing = "completion" if "prompt" in names else "prompt"
            raise ValueError(f"{missing}_column: none given; a {next(iter(names))}_column needs it")
        if names and self.corpus == "embedded":
            raise ValueError(
                "corpus: the embedded one has no columns; name what has "
                + " and ".join(names.values())
            )

    def target_names(self) -> list[str] | None:
        """The names in `lora_targets`; None: all linear layers but the head."""
        return listed(self.lora_targets)


def default_preset(arguments: Sequence[str]) -> str | None:
    """The preset of a command line without a recipe; a model of its own begins with none."""
    has_model = any(word.partition("=")[0] == "--model" for word in arguments)
    return None if has_model else DEFAULT_PRESET
