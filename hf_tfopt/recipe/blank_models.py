"""The models of recipes without weights: on the meta device, from configurations alone.

A tokenizer is not opened: the words of one that is named are as many as the architecture's own.
"""

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from hf_tfopt.recipe.causal_lm import causal_lm_config
from hf_tfopt.recipe.causal_lm_adapter import with_adapter
from hf_tfopt.recipe.causal_lm_keys import CausalLMRecipe
from hf_tfopt.recipe.classification_keys import TOKENS, ClassificationRecipe
from hf_tfopt.recipe.distillation_keys import DistillationRecipe
from hf_tfopt.recipe.keys import Recipe
from hf_tfopt.recipe.masked_lm import model_config, model_factory
from hf_tfopt.recipe.model_parts import opened
from hf_tfopt.recipe.seq2seq_keys import Seq2SeqRecipe
from hf_tfopt.recipe.seq2seq_model import seq2seq_config
from hf_tfopt.recipe.teacher_and_student import chosen_layers, teacher_config
from hf_tfopt.surgery.layer_stacks import layer_stacks


def masked_lm(recipe: Recipe) -> Any:
    """What scripts/pretrain.py trains."""
    model = _blank(model_factory(recipe), model_config(recipe), recipe.vocab_size)
    layers = recipe.layer_numbers()
    return model if layers is None else _shortened(model_factory(recipe), model, len(layers))


def distilled_classifier(recipe: DistillationRecipe) -> Any:
    """The student of scripts/distill.py; of an encoder that is trained first, with two classes."""
    teacher = _blank(AutoModelForSequenceClassification, teacher_config(recipe))
    num_layers = len(chosen_layers(recipe, teacher))
    return _shortened(AutoModelForSequenceClassification, teacher, num_layers)


def classifier(recipe: ClassificationRecipe) -> Any:
    """What scripts/finetune_classification.py trains; with two classes if the model has no own."""
    is_by_word = recipe.problem == TOKENS
    factory = AutoModelForTokenClassification if is_by_word else AutoModelForSequenceClassification
    return _blank(factory, opened(AutoConfig, "model", recipe.model))


def causal_lm(recipe: CausalLMRecipe) -> Any:
    """What scripts/finetune_causal_lm.py trains, beside its adapter if it has one."""
    model = _blank(AutoModelForCausalLM, causal_lm_config(recipe), recipe.vocab_size)
    if recipe.lora_rank is None:
        return model
    with torch.device("meta"):
        return with_adapter(recipe, model)


def seq2seq(recipe: Seq2SeqRecipe) -> Any:
    """What scripts/finetune_seq2seq.py trains."""
    return _blank(AutoModelForSeq2SeqLM, seq2seq_config(recipe), recipe.vocab_size)


def _blank(factory: Any, config: Any, vocab_size: int | None = None) -> Any:
    """The factory's model of a configuration, with tensors that have shapes alone."""
    if vocab_size:
        config.vocab_size = vocab_size
        for name, number in config.to_dict().items():  # the architecture's own; a tokenizer's fit
            if name.endswith("_token_id") and isinstance(number, int) and number >= vocab_size:
                setattr(config, name, 0)
    with torch.device("meta"):
        return factory.from_config(config)


def _shortened(factory: Any, model: Any, num_layers: int) -> Any:
    """The same with fewer layers."""
    stack = next(iter(layer_stacks(model).values()))
    setattr(model.config, stack.setting, num_layers)
    return _blank(factory, model.config)
