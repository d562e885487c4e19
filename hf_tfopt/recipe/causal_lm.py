"""A causal recipe's texts, tokenizer, rows and model: new ones, or those to go on from, checked."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from hf_tfopt.data.byte_tokenizer import train_byte_tokenizer
from hf_tfopt.data.causal_collator import CausalLMCollator
from hf_tfopt.data.corpus import load_corpus
from hf_tfopt.data.instructions import load_instructions, tokenize_instructions
from hf_tfopt.data.model_inputs import ModelFacts
from hf_tfopt.data.packing import pack
from hf_tfopt.data.tokenizer import tokenize
from hf_tfopt.recipe.causal_lm_adapter import loading_options, with_adapter
from hf_tfopt.recipe.causal_lm_keys import CausalLMRecipe
from hf_tfopt.recipe.model_keys import MODEL_SIZES
from hf_tfopt.recipe.model_parts import (
    check_fit,
    check_positions,
    fit_to_tokenizer,
    new_config,
    opened,
    saved_config,
)
from hf_tfopt.surgery.attention import unpadded_attention

_OTHER_TASK = re.compile(r"For\w*(Classification|QuestionAnswering|MultipleChoice)$")


class Rows(NamedTuple):
    """What is trained on, and how many rows of answers were cut or left out at `max_length`."""

    rows: Any
    num_cut: int = 0
    num_left_out: int = 0


def causal_lm_texts(recipe: CausalLMRecipe) -> Any:
    """The recipe's documents or instructions, "train" and "eval"; all words in "text".

    Raises:
        ValueError: as `load_corpus` and `load_instructions`.
    """
    sample: dict[str, Any] = {
        "eval_fraction": recipe.eval_fraction,
        "seed": recipe.split_seed or 0,
        "max_documents": recipe.max_documents,
    }
    if recipe.columns:
        return load_instructions(recipe.corpus, recipe.columns, **sample)
    text_unit: Any = recipe.text_unit
    return load_corpus(
        recipe.corpus, text_column=str(recipe.text_column), text_unit=text_unit, **sample
    )


def causal_lm_rows(recipe: CausalLMRecipe, texts: Any, tokenizer: Any) -> Rows:
    """Texts as the rows of batches, packed if the recipe says so.

    Each document ends with the tokenizer's end-of-text token; of instructions the answers alone
    have labels.

    Raises:
        ValueError: as `tokenize`, `tokenize_instructions` and `pack`.
    """
    if not recipe.columns:
        rows: Any = tokenize(texts, tokenizer, recipe.max_length, end_id=tokenizer.eos_token_id)
        return Rows(pack(rows, recipe.max_length) if recipe.packing else rows)
    rows = tokenize_instructions(texts, tokenizer, recipe.max_length)
    counts = sum(rows["is_cut"]), len(texts) - len(rows)
    rows = rows.remove_columns("is_cut")
    return Rows(pack(rows, recipe.max_length) if recipe.packing else rows, *counts)


def causal_lm_config(recipe: CausalLMRecipe) -> Any:
    """The configuration of the recipe's model, before there is a tokenizer.

    Raises:
        ValueError: an architecture that transformers does not have as a causal model, a size that
            it has not, a model that is not there or that is none for this task, or examples longer
            than it can read.
    """
    if recipe.continues:
        _refuse_adapter(recipe.model)
        config = saved_config(recipe.model, recipe.dropout)
        _check_task(recipe.model, config)
    else:
        config = _new_config(recipe)
    check_positions(config, recipe.model, recipe.max_length)
    return config


def _new_config(recipe: CausalLMRecipe) -> Any:
    sizes = {name: getattr(recipe, name) for name in MODEL_SIZES if getattr(recipe, name)}
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    config = new_config(recipe.model, known, sizes, recipe.dropout)
    if hasattr(config, "num_key_value_heads") and recipe.num_attention_heads:
        # of the architecture's own heads there may be more than of these
        sizes["num_key_value_heads"] = recipe.num_attention_heads
        config = new_config(recipe.model, known, sizes, recipe.dropout)
    _check_task(recipe.model, config)
    return config


def _refuse_adapter(model: str) -> None:
    if (Path(model) / "adapter_config.json").exists() and not (
        Path(model) / "config.json"
    ).exists():
        raise ValueError(
            f"model: {model!r} holds an adapter, not a model; train one with --merge_adapter true, "
            "or merge it with peft's merge_and_unload"
        )


def _check_task(model: str, config: Any) -> None:
    """Refuse models that do not write from left to right, and those saved for something else."""
    name = (config.architectures or [""])[0]
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"model: {model!r} ({config.model_type}) is an encoder and a decoder; "
            "scripts/finetune_seq2seq.py trains those"
        )
    is_encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if is_encoder and not getattr(config, "is_decoder", False):
        raise ValueError(
            f"model: {model!r} ({config.model_type}) is an encoder: it sees the words that it is "
            "to guess; scripts/pretrain.py and scripts/finetune_classification.py train those"
        )
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"model: {model!r} ({config.model_type}) is no causal language model of transformers"
        )
    if _OTHER_TASK.search(name):
        raise ValueError(
            f"model: {model!r} was saved as {name}, for another task; name the causal model that "
            "it was made from"
        )


def causal_lm_tokenizer(recipe: CausalLMRecipe, texts: Any, folder: Path) -> Any:
    """The run's tokenizer: the one in its folder already, the one named, or a new one.

    Args:
        recipe: names a tokenizer, or the size of a new one.
        texts: those to train on, for a new one.
        folder: the run's folder.

    Raises:
        ValueError: a name that leads nowhere, or a tokenizer without an end-of-text token.
    """
    if (folder / "tokenizer_config.json").exists():  # a resumed run, or another process made it
        return AutoTokenizer.from_pretrained(folder)
    name = recipe.tokenizer or (recipe.model if recipe.continues else None)
    if name:
        tokenizer = opened(AutoTokenizer, "tokenizer", name)
    else:
        assert recipe.vocab_size is not None
        longest = recipe.max_position_embeddings or max(1024, recipe.max_length)
        tokenizer = train_byte_tokenizer(texts, recipe.vocab_size, model_max_length=longest)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"tokenizer: {name!r} has no end-of-text token (eos_token), which ends documents and "
            "answers; it is not of a causal model"
        )
    return tokenizer


def causal_lm_model(recipe: CausalLMRecipe, tokenizer: Any, device: torch.device) -> Any:
    """The recipe's model for this tokenizer, with the recipe's attention, and adapter if any.

    Args:
        recipe: names the model, its attention and its adapter.
        tokenizer: of the rows.
        device: where 4-bit weights go.

    Raises:
        ValueError: a tokenizer with more ids than a trained model's embedding has, examples longer
            than the model can read, or a checkpoint without some of the model's weights.
    """
    config = causal_lm_config(recipe)
    attention = None if recipe.attention == "unpadded" else recipe.attention
    if recipe.continues:
        model = _saved_model(recipe, config, attention, device)
    else:
        fit_to_tokenizer(config, tokenizer)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    check_fit(tokenizer, recipe.max_length, ModelFacts.of(model))
    if recipe.attention == "unpadded":
        model = _unpadded(model)
    return model if recipe.lora_rank is None else with_adapter(recipe, model)


def _unpadded(model: Any) -> Any:
    try:
        return unpadded_attention(model)
    except ValueError as error:
        raise ValueError(
            f"attention unpadded: {error}. Give --attention eager, and perhaps --packing false"
        ) from error


def check_rows(collator: CausalLMCollator, rows: Any) -> None:
    """Refuse packed rows for a model that would mix their documents, before it is trained.

    Args:
        collator: bound to the model.
        rows: those to train on.

    Raises:
        ValueError: as the collator's.
    """
    try:
        collator([rows[0]])
    except ValueError as error:
        raise ValueError(f"packing: {error}. Here that is --packing false") from error


def _saved_model(
    recipe: CausalLMRecipe, config: Any, attention: str | None, device: torch.device
) -> Any:
    model, told = opened(
        AutoModelForCausalLM,
        "model",
        recipe.model,
        config=config,
        attn_implementation=attention,
        output_loading_info=True,
        **loading_options(recipe, device),
    )
    missing = sorted(told["missing_keys"])
    if missing:
        raise ValueError(
            f"model: {recipe.model!r} is a checkpoint of another task: a {type(model).__name__} "
            f"has weights that are not in it ({', '.join(missing[:3])})"
        )
    return model
