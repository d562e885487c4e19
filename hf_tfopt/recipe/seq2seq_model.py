"""A recipe's encoder-decoder and its tokenizer: new ones as it says, or those to go on from."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from hf_tfopt.data.byte_tokenizer import train_byte_tokenizer
from hf_tfopt.recipe.model_keys import MODEL_SIZES
from hf_tfopt.recipe.model_parts import check_architecture, dropouts, opened, saved_config
from hf_tfopt.recipe.seq2seq_keys import Seq2SeqRecipe
from hf_tfopt.registry import nearest

PADDING = "<pad>"
_OTHER_TASKS = ("Classification", "QuestionAnswering", "CausalLM", "EncoderModel")
_FEWEST_PIECES = 258
_ROLES = ("pad", "eos", "bos")
# A size of a recipe -> what encoder-decoders call it; all of these that one has are set.
_CALLED = {
    "hidden_size": ("d_model", "hidden_size"),
    "num_hidden_layers": (
        *("num_layers", "num_hidden_layers", "num_decoder_layers"),
        *("encoder_layers", "decoder_layers", "num_encoder_layers"),
    ),
    "num_attention_heads": (
        *("num_heads", "num_attention_heads", "encoder_attention_heads"),
        *("decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"),
    ),
    "intermediate_size": ("d_ff", "intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim"),
    "max_position_embeddings": (
        *("max_position_embeddings", "max_encoder_position_embeddings"),
        "max_decoder_position_embeddings",
    ),
}


def seq2seq_config(recipe: Seq2SeqRecipe) -> Any:
    """The configuration of the recipe's model, before there is a tokenizer.

    Raises:
        ValueError: an architecture that transformers does not have, or that is no encoder-decoder
            of texts; a size or option that it has not; a model that is not there; texts longer than
            it reads or writes.
    """
    config = _saved(recipe) if recipe.continues else _new(recipe)
    for name, side in (("max_source_length", "encoder"), ("max_target_length", "decoder")):
        _check_length(recipe, config, name, side)
    _check_length(recipe, config, "max_new_tokens", "decoder")
    return config


def _check_length(recipe: Seq2SeqRecipe, config: Any, name: str, side: str) -> None:
    """T5 and its kin have relative positions, and no limit."""
    own: Any = getattr(config, f"max_{side}_position_embeddings", None)
    positions = own or getattr(config, "max_position_embeddings", None)
    given: int = getattr(recipe, name)
    if positions and 0 < positions < given:
        verb = "reads" if side == "encoder" else "writes"
        raise ValueError(
            f"{name}: got {given}, but the model {recipe.model} {verb} only {positions} tokens; "
            f"with --{name} {positions} longer texts are cut"
        )


def _saved(recipe: Seq2SeqRecipe) -> Any:
    config = saved_config(recipe.model, recipe.dropout)
    if config.model_type not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES or not (
        config.is_encoder_decoder
    ):
        raise ValueError(
            f"model: {recipe.model!r} is a {config.model_type}, no encoder with a decoder that "
            "writes texts: take a T5, BART, Marian ... (decoders alone are for "
            "scripts/finetune_causal_lm.py, encoders alone for scripts/finetune_classification.py)"
        )
    return config


def _new(recipe: Seq2SeqRecipe, **others: Any) -> Any:
    name = recipe.model
    check_architecture(name, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    plain = AutoConfig.for_model(name)
    known = plain.to_dict()
    if not plain.is_encoder_decoder or "d_model" not in known:
        raise ValueError(
            f"model: a {name} cannot be built from sizes, or does not read texts; take t5, bart, "
            "marian, pegasus, m2m_100 ..., or a folder to go on from"
        )
    return AutoConfig.for_model(
        name,
        **dropouts(plain, recipe.dropout),
        **_sizes(recipe, known),
        **_options(recipe, known),
        **others,
    )


def _sizes(recipe: Seq2SeqRecipe, known: Mapping[str, Any]) -> dict[str, int]:
    """The recipe's sizes by the names that the architecture has for them."""
    found: dict[str, int] = {}
    for size in MODEL_SIZES:
        value: int | None = getattr(recipe, size)
        names = [name for name in _CALLED[size] if name in known]
        if value is not None and not names:
            raise ValueError(f"{size}: a {recipe.model} has no such size; leave it out")
        found |= {name: value for name in names if value is not None}
    if "d_kv" in known and {"d_model", "num_heads"} & found.keys():
        width, heads = ({**known, **found}[name] for name in ("d_model", "num_heads"))
        found["d_kv"] = width // heads
    return found


def _options(recipe: Seq2SeqRecipe, known: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(recipe.model_options or {})
    for name in options:
        if name not in known:
            raise ValueError(
                f"model_options: a {recipe.model} has no {name}{nearest(name, known)}; leave it out"
            )
    return options


def seq2seq_tokenizer(recipe: Seq2SeqRecipe, texts: Iterable[str], folder: Path) -> Any:
    """The run's tokenizer: the one in its folder already, the one named, or a new one.

    Args:
        recipe: names a tokenizer, or the size of a new one.
        texts: sources and targets to train on, for a new one.
        folder: the run's folder.

    Raises:
        ValueError: a name that leads nowhere; a tokenizer without what ends a text or pads it; a
            language that it does not know.
    """
    name = recipe.tokenizer or (recipe.model if recipe.continues else None)
    if (folder / "tokenizer_config.json").exists():  # a resumed run, or another process made it
        tokenizer = AutoTokenizer.from_pretrained(folder)
    elif name:
        tokenizer = opened(AutoTokenizer, "tokenizer", name)
    else:
        assert recipe.vocab_size is not None
        tokenizer = new_tokenizer(texts, recipe.vocab_size)
    for role in ("pad", "eos"):
        if getattr(tokenizer, f"{role}_token_id") is None:
            raise ValueError(f"tokenizer: {name!r} has no {role}_token; take the model's own")
    return _with_languages(recipe, tokenizer, str(name))


def new_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte pairs of some texts; what ends a text stands behind it, and there is a padding token.

    Args:
        texts: sources and targets alike: one vocabulary serves both.
        vocab_size: the most pieces it may have.

    Raises:
        ValueError: no text, or a vocabulary too small for the bytes.
    """
    if vocab_size <= _FEWEST_PIECES:
        raise ValueError(
            f"vocab_size: got {vocab_size}, must be above {_FEWEST_PIECES}: 256 bytes, what ends a "
            "text and what pads it"
        )
    learnt: Any = train_byte_tokenizer(texts, vocab_size - 1)
    backend, end = learnt.backend_tokenizer, learnt.eos_token
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A $B {end}", special_tokens=[(end, learnt.eos_token_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end, unk_token=end, pad_token=PADDING
    )


def _with_languages(recipe: Seq2SeqRecipe, tokenizer: Any, name: str) -> Any:
    """The tokenizer, set to the recipe's languages where it knows any."""
    has_languages = hasattr(tokenizer, "src_lang") and hasattr(tokenizer, "tgt_lang")
    given = {"src_lang": recipe.source_language, "tgt_lang": recipe.target_language}
    if recipe.source_language is None:
        if has_languages and None in (tokenizer.src_lang, tokenizer.tgt_lang):
            raise ValueError(
                f"source_language: the tokenizer {name!r} knows languages, and none is chosen; "
                "give it and target_language"
            )
        return tokenizer
    if not has_languages:
        raise ValueError(
            f"source_language: the tokenizer {name!r} knows no languages; leave both out (a T5 is "
            "told by --prefix 'translate English to German: ')"
        )
    for side, language in given.items():
        try:
            language_id(tokenizer, str(language))
            setattr(tokenizer, side, language)
        except (KeyError, ValueError) as error:
            key = "source_language" if side == "src_lang" else "target_language"
            hint = nearest(str(language), tokenizer.get_vocab())
            raise ValueError(f"{key}: the tokenizer {name!r} has no {language!r}{hint}") from error
    return tokenizer


def language_id(tokenizer: Any, language: str) -> int:
    """The token that stands for a language, such as `en_XX`, or `en` of an M2M100.

    Raises:
        KeyError: the tokenizer has none.
    """
    if hasattr(tokenizer, "lang_code_to_id") and language in tokenizer.lang_code_to_id:
        return tokenizer.lang_code_to_id[language]
    vocabulary = tokenizer.get_vocab()
    known = getattr(tokenizer, "lang_code_to_token", {})
    return vocabulary[known.get(language, language)]


def seq2seq_model(recipe: Seq2SeqRecipe, config: Any, tokenizer: Any) -> Any:
    """The recipe's model for this tokenizer.

    Args:
        recipe: which it is.
        config: `seq2seq_config(recipe)`, of a model to go on from.
        tokenizer: the run's.

    Raises:
        ValueError: a checkpoint of another task, a tokenizer with more ids than its embedding, or
            a way to compute layers that the host does not have for it.
    """
    if not recipe.continues:
        special = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in _ROLES}
        special["decoder_start_token_id"] = tokenizer.pad_token_id  # as T5 and Marian have it
        special["forced_eos_token_id"] = tokenizer.eos_token_id
        made = _new(recipe, vocab_size=len(tokenizer), **special)
        model = AutoModelForSeq2SeqLM.from_config(made, attn_implementation=recipe.attention)
        return _checkpointable(recipe, model)
    model, found = opened(
        AutoModelForSeq2SeqLM,
        "model",
        recipe.model,
        config=config,
        attn_implementation=recipe.attention,
        dtype=torch.float32,
        output_loading_info=True,
    )
    _check_task(recipe, config, sorted(found["missing_keys"]))
    num_ids = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > num_ids:
        raise ValueError(
            f"tokenizer: it has {len(tokenizer)} pieces, the embedding of {recipe.model!r} only "
            f"{num_ids}; take the model's own (leave tokenizer out)"
        )
    return _checkpointable(recipe, model)


def _checkpointable(recipe: Seq2SeqRecipe, model: Any) -> Any:
    """The model, if it can be trained as the recipe has it."""
    if recipe.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise ValueError(
            f"gradient_checkpointing: the host's {type(model).__name__} has none; leave it out"
        )
    return model


def _check_task(recipe: Seq2SeqRecipe, config: Any, missing: list[str]) -> None:
    """Refuse a checkpoint that does not say how to write, or that learned something else."""
    kind = (config.architectures or ["model"])[0]
    if missing:
        lacks = f"no weights for {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"
    elif any(task in kind for task in _OTHER_TASKS):
        lacks = "a head that texts are not written with"
    else:
        return
    raise ValueError(
        f"model: {recipe.model!r} is a checkpoint of another task ({kind}): it has {lacks}"
    )
