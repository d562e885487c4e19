"""What a recipe's model writes: how it generates, and how good that is."""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import GenerationConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from hf_tfopt.data.text_pairs import SOURCE, TARGET
from hf_tfopt.metrics import Scores
from hf_tfopt.recipe.seq2seq_keys import Seq2SeqRecipe
from hf_tfopt.recipe.seq2seq_model import language_id
from hf_tfopt.recipe.seq2seq_texts import IDS
from hf_tfopt.registry import check_name
from hf_tfopt.trainer import TfoptTrainer

# What only several beams read: a model's own are put aside where one generates.
_OF_BEAMS = ("early_stopping", "length_penalty", "diversity_penalty")

_Numbered = tuple[int, str]  # the number of a row, and the text that is written for it


class Sample(NamedTuple):
    """Pairs that texts are generated for, and the same as token ids."""

    pairs: datasets.Dataset
    rows: datasets.Dataset


def sampled(pairs: datasets.Dataset, rows: datasets.Dataset, count: int | None = None) -> Sample:
    """So many pairs, drawn by chance but always the same; all where there are no more, or by None.

    Args:
        pairs: of texts.
        rows: the same as token ids.
        count: how many; whatever a run's seed is, they are the same.
    """
    if count is None or count >= len(pairs):
        return Sample(pairs, rows)
    chosen = np.sort(np.random.default_rng(0).permutation(len(pairs))[:count])
    return Sample(pairs.select(chosen), rows.select(chosen))


def sample_lines(sample: Sample | None, rows: datasets.Dataset, when: str) -> list[str]:
    """What to say of texts that are generated for only some of these rows, for a terminal."""
    if sample is None or len(sample.rows) == len(rows):
        return []
    return [
        f"Generated  {when}: for {len(sample.rows):,} of the {len(rows):,} held-out pairs, "
        "the same in every run"
    ]


def text_scores(recipe: Seq2SeqRecipe, intervals: float | None = None) -> Scores:
    """The recipe's metrics of texts, with bootstrap intervals of this level if one is given."""
    return Scores(*recipe.metric_names(), intervals=intervals)


def generation_config(recipe: Seq2SeqRecipe, model: Any, tokenizer: Any) -> GenerationConfig:
    """How the recipe's model generates: as it did, but for what the recipe says.

    Args:
        recipe: may say anything that the host's `GenerationConfig` knows.
        model: whose own settings stay where the recipe says nothing, but for the limits of length.
        tokenizer: tells the target language's token, which generation then begins with.

    Raises:
        ValueError: an option that the host has not, or that does not go with the others.
    """
    found: dict[str, Any] = copy.deepcopy(model.generation_config).to_dict()
    given = dict(recipe.generation or {})
    for name in given:
        check_name("option of generation", name, GenerationConfig().to_dict())
    # "longest" is said in new tokens alone: the two limits would fight
    found |= {"max_length": None, "max_new_tokens": recipe.max_new_tokens}
    found["num_beams"] = recipe.num_beams or found.get("num_beams") or 1
    if found["num_beams"] == 1:
        found |= dict.fromkeys(_OF_BEAMS)
    found |= given | _language(recipe, tokenizer)
    shortest = max(found.get("min_length") or 0, found.get("min_new_tokens") or 0)
    if shortest > int(recipe.max_new_tokens or 0):
        raise ValueError(
            f"max_new_tokens: got {recipe.max_new_tokens}, but the model's own shortest text has "
            f"{shortest}; raise it, or give --generation '{{min_length: 0}}'"
        )
    if found.get("do_sample"):
        raise ValueError(
            "generation: do_sample draws texts by chance, and their scores with them; leave it out"
        )
    if (found.get("num_return_sequences") or 1) > 1 or found.get("return_dict_in_generate"):
        raise ValueError(
            "generation: each source gets one text and nothing beside it; give "
            "--generation '{num_return_sequences: 1, return_dict_in_generate: false}'"
        )
    config = GenerationConfig(**found)
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise ValueError(f"generation: {error}") from error
    return config


def _language(recipe: Seq2SeqRecipe, tokenizer: Any) -> dict[str, int]:
    """What makes generation begin in the target language, by where the tokenizer has its token."""
    if recipe.target_language is None:
        return {}
    token = language_id(tokenizer, recipe.target_language)
    labels: list[int] = tokenizer(text_target="a")[IDS]
    # the first mBART ends a text with its language, and the decoder begins with what is last
    return {"decoder_start_token_id" if labels[-1] == token else "forced_bos_token_id": token}


@torch.no_grad()
def check_generation(model: Any, tokenizer: Any, source: Sequence[int]) -> None:
    """Let the model write two tokens: what cannot be said of its options before ends here.

    Args:
        model: with its `generation_config`.
        tokenizer: the model's.
        source: token ids.

    Raises:
        ValueError: whatever the host raises.
    """
    config = copy.deepcopy(model.generation_config)
    config.update(max_new_tokens=2, min_new_tokens=0, min_length=0)
    inputs = tokenizer.pad({IDS: [source]}, return_tensors="pt").to(model.device)
    was_training = model.training
    model.eval()
    try:
        model.generate(**inputs, generation_config=config)
    except Exception as error:
        raise ValueError(f"generation: the model cannot write so: {error}") from error
    model.train(was_training)


def generated(
    open_model: Callable[[], Any],
    tokenizer: Any,
    rows: datasets.Dataset,
    batch_size: int,
    context: Callable[[], Any] = nullcontext,
) -> list[str]:
    """What a model writes for each row, in their order, by its own `generation_config`.

    Every process does a part of the rows, and all have all texts at the end. Rows of similar length
    go together, the longest first. Where it fails on one process, no other waits for it.

    Args:
        open_model: gives the model; it is left in the mode that it is in.
        tokenizer: the model's.
        rows: with "input_ids".
        batch_size: sources at a time.
        context: around each call of the model, such as autocast.

    Raises:
        Exception: whatever the host raises, memory that does not suffice most of all.
        RuntimeError: another process has raised it.
    """
    found, failure = list[_Numbered](), None
    try:
        found = _own_texts(open_model(), tokenizer, rows[IDS][:], batch_size, context)
    except Exception as error:
        failure = error
    told = [(found, "" if failure is None else f"{type(failure).__name__}: {failure}")]
    if PartialState().num_processes > 1:
        told = gather_object(told)
    if failure is not None:
        raise failure
    if words := next((words for _, words in told if words), None):
        raise RuntimeError(f"on another process: {words}")
    return [text for _, text in sorted(each for own, _ in told for each in own)]


@torch.no_grad()
def _own_texts(
    model: Any,
    tokenizer: Any,
    sources: Sequence[Sequence[int]],
    batch_size: int,
    context: Callable[[], Any],
) -> list[_Numbered]:
    """The texts of this process's part of the sources, each with its source's number."""
    process = PartialState()
    order = sorted(range(len(sources)), key=lambda row: -len(sources[row]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    found = list[_Numbered]()
    was_training = model.training
    model.eval()
    for batch in batches[process.process_index :: process.num_processes]:
        inputs = tokenizer.pad({IDS: [sources[row] for row in batch]}, return_tensors="pt")
        with context():
            ids = model.generate(**inputs.to(model.device))
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        found += zip(batch, (text.strip() for text in texts), strict=True)
    model.train(was_training)
    return found


class GeneratingTrainer(TfoptTrainer):
    """`TfoptTrainer` whose evaluations also generate, for a sample of their pairs.

    The loss is that of all held-out pairs, exact as ever; the texts' numbers, such as `eval_bleu`,
    are those of the sample beside the references as they were written (not as token ids give them
    back), each pair once on any number of processes. Training is the same with and without.

    Args:
        args: of `TfoptTrainer`.
        sample: the pairs; none: the loss alone.
        text_scores: of the texts.
        parts: of `TfoptTrainer`.

    Raises:
        ValueError: a sample, where each process has only a part of the weights.
    """

    def __init__(
        self,
        *args: Any,
        sample: Sample | None = None,
        text_scores: Scores | None = None,
        **parts: Any,
    ):
        super().__init__(*args, **parts)
        if sample is not None and (self.is_fsdp_enabled or is_deepspeed_zero3_enabled()):
            raise ValueError(
                "eval_samples with weights cut into shards (FSDP, ZeRO-3): the processes would "
                "wait for one another; leave it out, texts are generated at the end all the same"
            )
        self.sample = sample
        self.text_scores = text_scores

    def evaluation_loop(self, *args: Any, **options: Any) -> Any:
        """The loss's, and the texts' numbers beside it."""
        output = super().evaluation_loop(*args, **options)
        if self.sample is None or self.text_scores is None:
            return output
        texts = generated(
            lambda: self.accelerator.unwrap_model(self.model),
            self.processing_class,
            self.sample.rows,
            self.args.per_device_eval_batch_size,
            self.compute_loss_context_manager,
        )
        prefix = options.get("metric_key_prefix", "eval")
        numbers = self.text_scores((texts, self.sample.pairs[TARGET][:]))
        named = {f"{prefix}_{name}": value for name, value in numbers.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})


def written(pairs: datasets.Dataset, texts: Sequence[str]) -> list[dict[str, str]]:
    """Each source with its reference and what was generated, as predictions.jsonl has them."""
    columns = (pairs[SOURCE][:], pairs[TARGET][:], texts)
    return [
        {"source": source, "target": target, "generated": text}
        for source, target, text in zip(*columns, strict=True)
    ]
