"""By what rows of token ids are found again on disk: texts, and all that makes ids of them."""

from typing import Any

from datasets.fingerprint import Hasher
from tokenizers import Tokenizer


def rows_fingerprint(kind: str, dataset: Any, tokenizer: Any, *options: object) -> str | None:
    """For `Dataset.map(new_fingerprint=...)`: equal where texts, tokenizer and options are.

    None leaves it to `datasets`, whose own depends on where the tokenizer was read from: a run that
    trained its tokenizer and one that reads it from a folder would not find the same rows. It is
    None for tokenizers that are written in Python, and for those of others than the host.

    Args:
        kind: what is made, and a number for how: a file made otherwise must not be found.
        dataset: the texts.
        tokenizer: any of `transformers`; padding and truncation do not count.
        options: all else that the rows depend on.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not type(tokenizer).__module__.startswith("transformers."):
        return None
    try:
        bare = Tokenizer.from_str(backend.to_str())
    except Exception:  # a part of it is written in Python
        return None
    bare.no_padding()
    bare.no_truncation()
    made_by = (type(tokenizer).__qualname__, bare.to_str())
    if getattr(tokenizer, "split_special_tokens", False):
        made_by += ("special tokens are split",)
    return Hasher.hash((kind, *made_by, *options, dataset._fingerprint))
