"""A fine-tuned classifier's model and tokenizer, as its recipe and its rows ask for them."""

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from hf_tfopt.data.labelled_names import REGRESSION, TOKENS
from hf_tfopt.data.model_inputs import ModelFacts
from hf_tfopt.recipe.class_order import (
    architecture,
    in_models_order,
    is_classifier,
    name_classes,
    own_names,
)
from hf_tfopt.recipe.classification_keys import ClassificationRecipe
from hf_tfopt.recipe.model_parts import check_lengths, opened
from hf_tfopt.surgery.dropout import dropout_sites

# Heads for other things than classes or the next token.
OTHER_TASKS = ("ForQuestionAnswering", "ForMultipleChoice", "ForTokenClassification")


def classifier_config(recipe: ClassificationRecipe, problem: str, names: list[str] | None) -> Any:
    """The config of the recipe's model with the rows' classes, in the order of its own if it has.

    Args:
        recipe: whose model.
        problem: as the rows have it.
        names: of the rows' classes; None: a regression.

    Raises:
        ValueError: no such model, or a classifier of another problem or other classes.
    """
    config = opened(AutoConfig, "model", recipe.model)
    if not recipe.new_head:
        try:
            names = names_of_head(f"model: {recipe.model!r}", config, problem, names)
        except ValueError as error:
            raise ValueError(f"{error}; or give it a new head: --new_head true") from error
    return with_classes(config, problem, names)


def names_of_head(
    whose: str, config: Any, problem: str, names: list[str] | None
) -> list[str] | None:
    """The rows' classes as the model's own head has them; as they are where it has none.

    Args:
        whose: the model, as an error begins.
        config: of the model.
        problem: as the rows have it.
        names: of the rows' classes; None: a regression.

    Raises:
        ValueError: a head for another task, problem, or other classes.
    """
    if is_classifier(config) and architecture(config).endswith(_head(problem)):
        return _checked_head(whose, config, problem, names)
    if task := _other_task(config):
        raise ValueError(f"{whose} is a {task}, and this is {problem}: take another model")
    return names


def with_classes(config: Any, problem: str, names: list[str] | None) -> Any:
    """The config, told what is learnt; as many outputs as there are classes.

    Args:
        config: of the model.
        problem: as the rows have it.
        names: of the classes, in their order; None: a regression.
    """
    config.problem_type = None if problem == TOKENS else problem
    if names is None:
        config.num_labels = 1
    elif own_names(config) != names:
        name_classes(config, names)
    return config


def _head(problem: str) -> str:
    return "ForTokenClassification" if problem == TOKENS else "ForSequenceClassification"


def _other_task(config: Any) -> str | None:
    """The head of another task that the model was saved with; heads of pre-training are none."""
    name = architecture(config)
    heads = (*OTHER_TASKS, "ForSequenceClassification")
    return name if any(name.endswith(head) for head in heads) else None


def _checked_head(
    whose: str, config: Any, problem: str, names: list[str] | None
) -> list[str] | None:
    """The classes in the order of the model's own head."""
    own = getattr(config, "problem_type", None)
    if own is None and problem != TOKENS:
        own = REGRESSION if config.num_labels == 1 else None
    if problem != TOKENS and own is not None and own != problem:
        raise ValueError(f"{whose} was made for {own}, and this is {problem}")
    if names is None:
        if config.num_labels != 1:
            raise ValueError(f"{whose} has {config.num_labels} outputs, a regression has one")
        return None
    found = in_models_order(whose, config, names)
    is_named = own_names(config) != [f"LABEL_{n}" for n in range(config.num_labels)]
    numbers = [str(number) for number in range(len(names))]
    return own_names(config) if found == numbers and is_named else found


def classifier_tokenizer(key: str, name: str, problem: str, told: list[str]) -> Any:
    """A model's tokenizer, with a token to pad with.

    Args:
        key: of the recipe, that says the name.
        name: of the model, a folder or a Hub repository.
        problem: words with tags need a fast one, which knows the words of tokens.
        told: takes what is to be said.

    Raises:
        ValueError: none there, none that fits, or nothing to pad with.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
        if problem == TOKENS and getattr(tokenizer, "add_prefix_space", True) is False:
            tokenizer = AutoTokenizer.from_pretrained(name, add_prefix_space=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{key}: {name!r} has no tokenizer: {error}") from error
    if problem == TOKENS and not tokenizer.is_fast:
        raise ValueError(
            f"{key}: {type(tokenizer).__name__} does not tell which word a token is of, as tags "
            "need it: take a model with a fast tokenizer"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"{key}: {type(tokenizer).__name__} has no padding token, and none that ends a "
                "text in its place: set one and save it with the model"
            )
        tokenizer.pad_token = tokenizer.eos_token
        told.append(f"No padding token: {tokenizer.eos_token}, which ends a text, is taken for it")
    return tokenizer


def classifier_model(recipe: ClassificationRecipe, config: Any, tokenizer: Any) -> Any:
    """The recipe's model with a head for the rows' classes: its own, or a new one.

    Args:
        recipe: whose model.
        config: from `classifier_config`.
        tokenizer: its own.

    Raises:
        ValueError: it cannot classify, or has too few positions for `max_length`.
    """
    factory: Any = (
        AutoModelForTokenClassification
        if recipe.problem == TOKENS
        else AutoModelForSequenceClassification
    )
    model = opened_classifier(
        factory,
        "model",
        recipe.model,
        config,
        tokenizer,
        ignore_mismatched_sizes=recipe.new_head,
    )
    if recipe.new_head:
        _renew_head(model, factory)
    if recipe.head_dropout is not None:
        _set_head_dropout(model, recipe.head_dropout)
    check_lengths(recipe.max_length, ModelFacts.of(model))
    return model


def opened_classifier(
    factory: Any, key: str, name: str, config: Any, tokenizer: Any, **options: Any
) -> Any:
    """A model with its own head or a new one, in fp32.

    Args:
        factory: an Auto class, by what is classified.
        key: of the recipe, that says the name.
        name: of the model, a folder or a Hub repository.
        config: from `with_classes`.
        tokenizer: the model's own.
        options: of the factory.

    Raises:
        ValueError: it cannot classify.
    """
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    try:
        return factory.from_pretrained(name, config=config, dtype=torch.float32, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"{key}: {name!r} cannot be a classifier: {error}") from error


@torch.no_grad()
def _renew_head(model: Any, kind: Any) -> None:
    """Draw again what is not the body's: a head of the same shape was read with it."""
    body = {id(parameter) for parameter in model.base_model.parameters()}
    fresh = dict(kind.from_config(model.config).named_parameters())
    for name, parameter in model.named_parameters():
        if id(parameter) not in body:
            parameter.copy_(fresh[name])


def _set_head_dropout(model: Any, share: float) -> None:
    """Of all that is outside the body: configurations have many names for it."""
    body = f"{model.base_model_prefix}."
    own = [site for name, site in dropout_sites(model).items() if not name.startswith(body)]
    if not own:
        raise ValueError(f"head_dropout: the head of {type(model).__name__} has none; leave it out")
    for site in own:
        site.set(share)
