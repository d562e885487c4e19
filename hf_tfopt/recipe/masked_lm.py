"""A recipe's rows, tokenizer and model: new ones as it says, or those to go on from, checked."""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from hf_tfopt.data.corpus import load_corpus
from hf_tfopt.data.model_inputs import ModelFacts
from hf_tfopt.data.packing import pack
from hf_tfopt.data.sentence_pairs import sentence_pairs
from hf_tfopt.data.tokenizer import tokenize, train_tokenizer
from hf_tfopt.objectives.sentence_head import pretraining_class
from hf_tfopt.recipe.keys import Recipe
from hf_tfopt.recipe.model_keys import MODEL_SIZES
from hf_tfopt.recipe.model_parts import (
    check_fit,
    check_positions,
    fit_to_tokenizer,
    new_config,
    opened,
    saved_config,
)
from hf_tfopt.run.progress import progress_where_long
from hf_tfopt.surgery.attention import unpadded_attention
from hf_tfopt.surgery.student import student_from

# The objectives that train on pairs of texts, and which pairs.
PAIR_TASKS: dict[str, Literal["nsp", "sop"]] = {"mlm+nsp": "nsp", "mlm+sop": "sop"}


def masked_lm_corpus(recipe: Recipe) -> Any:
    """The recipe's documents, "train" and "eval"; raises ValueError as `load_corpus`."""
    text_unit: Any = recipe.text_unit
    assert recipe.eval_fraction is not None
    return load_corpus(
        recipe.corpus,
        eval_fraction=recipe.eval_fraction,
        seed=recipe.split_seed or 0,
        text_column=recipe.text_column,
        text_unit=text_unit,
        max_documents=recipe.max_documents,
    )


def masked_lm_rows(recipe: Recipe, documents: Any, tokenizer: Any) -> Any:
    """Documents as the rows of batches: pairs of texts, or examples, packed if it says so.

    Progress is shown where it takes minutes, also if `datasets` was told to show none.
    """
    with progress_where_long(documents.data.nbytes):
        task = PAIR_TASKS.get(recipe.objective)
        if task is not None:
            return sentence_pairs(documents, tokenizer, task, recipe.max_length, seed=recipe.seed)
        examples = tokenize(documents, tokenizer, recipe.max_length)
        return pack(examples, recipe.max_length) if recipe.packing else examples


def model_factory(recipe: Recipe) -> Any:
    """The host's factory of models with the heads that the recipe's objective needs."""
    return AutoModelForPreTraining if recipe.objective in PAIR_TASKS else AutoModelForMaskedLM


def model_config(recipe: Recipe) -> Any:
    """The configuration of the recipe's model, before there is a tokenizer.

    Raises:
        ValueError: an architecture that transformers does not have, or without a head for the
            objective, a size that it has not, a model that is not there or without the layers, or
            examples longer than it can read.
    """
    continues = recipe.continues
    config = saved_config(recipe.model, recipe.dropout) if continues else _new_config(recipe)
    _check_layers(recipe, config)
    if recipe.objective in PAIR_TASKS:
        _check_sentence_head(recipe, config)
    check_positions(config, recipe.model, recipe.max_length)
    return config


def _check_layers(recipe: Recipe, config: Any) -> None:
    """Those of a trained model: rising numbers of layers that it has."""
    chosen, length = recipe.layer_numbers(), getattr(config, "num_hidden_layers", None)
    if chosen is None or length is None:
        return
    if chosen != sorted(set(chosen)) or chosen[-1] >= length:
        raise ValueError(
            f"layers: got {recipe.layers}, must be rising numbers from 0 to {length - 1}: "
            f"{recipe.model} has {length} layers"
        )


def _check_sentence_head(recipe: Recipe, config: Any) -> None:
    try:
        pretraining_class(config.model_type)
    except ValueError as error:
        raise ValueError(f"objective: got {recipe.objective!r}, but {error}") from error


def _new_config(recipe: Recipe) -> Any:
    sizes = {name: getattr(recipe, name) for name in MODEL_SIZES if getattr(recipe, name)}
    return new_config(recipe.model, MODEL_FOR_MASKED_LM_MAPPING_NAMES, sizes, recipe.dropout)


def masked_lm_tokenizer(recipe: Recipe, texts: Any, folder: Path) -> Any:
    """The run's tokenizer: the one in its folder already, the one named, or a new one.

    Args:
        recipe: names a tokenizer, or the size of a new one.
        texts: the training documents, for a new one.
        folder: the run's folder.

    Raises:
        ValueError: a name that leads nowhere, or a tokenizer without a mask token.
    """
    if (folder / "tokenizer_config.json").exists():  # a resumed run, or another process made it
        return AutoTokenizer.from_pretrained(folder)
    name = recipe.tokenizer or (recipe.model if recipe.continues else None)
    if name:
        tokenizer = opened(AutoTokenizer, "tokenizer", name)
        if recipe.max_position_embeddings:  # what it cuts texts to is what the model reads
            longest = min(tokenizer.model_max_length, recipe.max_position_embeddings)
            tokenizer.model_max_length = longest
    else:
        assert recipe.vocab_size is not None
        longest = recipe.max_position_embeddings or max(512, recipe.max_length)
        tokenizer = train_tokenizer(texts, recipe.vocab_size, model_max_length=longest)
    if tokenizer.mask_token_id is None:
        raise ValueError(f"tokenizer: {name!r} has no mask token; it is not of a masked model")
    return tokenizer


def masked_lm_model(recipe: Recipe, tokenizer: Any) -> Any:
    """The recipe's model for this tokenizer, with the recipe's attention.

    Raises:
        ValueError: a tokenizer with more ids than a trained model's embedding has, or examples
            longer than the model can read.
    """
    config = model_config(recipe)
    attention = None if recipe.attention == "unpadded" else recipe.attention
    if recipe.continues:
        model = opened(
            model_factory(recipe),
            "model",
            recipe.model,
            config=config,
            attn_implementation=attention,
            dtype=torch.float32,
        )
        layers = recipe.layer_numbers()
        model = model if layers is None else student_from(model, layers)
    else:
        fit_to_tokenizer(config, tokenizer)
        _count_from_first_position(config, recipe)
        model = model_factory(recipe).from_config(config, attn_implementation=attention)
    check_fit(tokenizer, recipe.max_length, ModelFacts.of(model))
    return unpadded_attention(model) if recipe.attention == "unpadded" else model


def _count_from_first_position(config: Any, recipe: Recipe) -> None:
    """RoBERTa and its kin leave the first positions unused: give the table as many more rows."""
    if recipe.max_position_embeddings:
        with torch.device("meta"):
            first = ModelFacts.of(AutoModelForMaskedLM.from_config(config)).first_position
        config.max_position_embeddings = recipe.max_position_embeddings + first
