"""Masked words and what a model puts there: the quickest honest look at a masked language model."""

import random
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])|\n\s*\n")
_MIN_WORDS, _MAX_WORDS, _MIN_LETTERS = 6, 24, 4


class Blank(NamedTuple):
    """A sentence with one word taken out."""

    before: str
    word: str
    after: str


def blanks(documents: Sequence[str], tokenizer: Any, count: int = 8, seed: int = 0) -> list[Blank]:
    """Sentences of the documents, at most one of each, with one random word of each taken out.

    The word is one that the tokenizer knows as a single token, of four letters or more. Which
    sentence and which word is a function of the seed, not of what a model would make of it.

    Args:
        documents: texts that the model has not seen.
        tokenizer: a fast tokenizer.
        count: how many sentences, if the documents have as many.
        seed: of the choice.
    """
    choose = random.Random(seed)
    found: list[Blank] = []
    for index in choose.sample(range(len(documents)), len(documents)):
        if len(found) == count:
            break
        sentences = _sentences(documents[index])
        choose.shuffle(sentences)
        options = (_single_token_words(sentence, tokenizer) for sentence in sentences)
        words = next(filter(None, options), None)
        if words:
            found.append(choose.choice(words))
    return found


def _sentences(text: str) -> list[str]:
    parts = (" ".join(part.split()) for part in _SENTENCE.split(text))
    return [
        part
        for part in parts
        if _MIN_WORDS <= len(part.split()) <= _MAX_WORDS and part[0].isupper() and part[-1] in ".!?"
    ]


def _single_token_words(sentence: str, tokenizer: Any) -> list[Blank]:
    """Every way to take one such word out of a sentence."""
    encoding = tokenizer(sentence, return_offsets_mapping=True)
    words = encoding.word_ids()
    options: list[Blank] = []
    for word, (start, end) in zip(words, encoding["offset_mapping"], strict=True):
        # byte-level tokenizers count the space before a word to it
        start += len(sentence[start:end]) - len(sentence[start:end].lstrip())
        text = sentence[start:end]
        single = word is not None and words.count(word) == 1
        if single and len(text) >= _MIN_LETTERS and text.isalpha():
            options.append(Blank(sentence[:start], text, sentence[end:]))
    return options


@torch.no_grad()
def complete(
    model: Any, tokenizer: Any, sentences: Iterable[Blank], top: int = 3
) -> list[dict[str, Any]]:
    """What the model puts in place of each word, with its probability.

    Each sentence is read alone: `softmax(model(input_ids).logits[0, i])` at the mask's position i.

    Args:
        model: a masked language model; it is put into evaluation mode.
        tokenizer: the model's fast tokenizer.
        sentences: what `blanks` gives.
        top: how many guesses of each.

    Returns:
        For each sentence: before, word (the truth), after, and guesses as (word, probability).
    """
    model.eval()
    results: list[dict[str, Any]] = []
    for blank in sentences:
        encoding = tokenizer("".join(blank), return_tensors="pt")
        position = encoding.char_to_token(len(blank.before))
        input_ids = encoding["input_ids"].to(model.device)
        input_ids[0, position] = tokenizer.mask_token_id
        probabilities = model(input_ids=input_ids).logits[0, position].float().softmax(-1)
        best = probabilities.topk(top)
        guesses = [
            (str(tokenizer.decode([index])).strip(), probability)
            for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        results.append({**blank._asdict(), "guesses": guesses})
    return results
