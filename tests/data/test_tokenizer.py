"""The tokenizer that is learnt, and examples of token ids."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pytest
from tokenizers import BertWordPieceTokenizer, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_tfopt.data import tokenizer as tokenizer_module
from hf_tfopt.data.tokenizer import SPECIAL_TOKENS, cut, tokenize, train_tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A lazy fox is not a quick one, and a quick dog is no fox.",
    "Jumping over dogs is what foxes do; naïve dogs do not jump.",
] * 4


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS, 90)


def documents(texts: list[str]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": texts, "id": list(range(len(texts)))})


def ids(dataset: Any) -> list[list[int]]:
    return [row["input_ids"] for row in dataset]


# the tokenizer


def test_it_opens_as_any_other_bert_tokenizer(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    code = (
        "import sys; from transformers import AutoTokenizer; "
        f"t = AutoTokenizer.from_pretrained({str(tmp_path)!r}); "
        f"print(type(t).__name__, t.model_max_length, t({TEXTS[2]!r}, 'A dog.')['input_ids']); "
        "assert 'hf_tfopt' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = tokenizer(TEXTS[2], "A dog.")["input_ids"]
    assert done.stdout.strip() == f"BertTokenizer 512 {expected}"


def test_it_is_a_bert_tokenizer(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(range(5)) == list(SPECIAL_TOKENS)
    assert tokenizer.all_special_ids == [1, 3, 0, 2, 4]
    encoded = tokenizer("Naïve DOGS", "jump")
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert tokens[0] == "[CLS]"
    assert [i for i, token in enumerate(tokens) if token == "[SEP]"][-1] == len(tokens) - 1
    assert set(encoded["token_type_ids"]) == {0, 1}
    assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == "naive dogs jump"
    assert len(tokenizer) == 90
    assert sorted(tokenizer.get_vocab().values()) == list(range(90))


def test_case_is_kept_when_asked(tmp_path: Path) -> None:
    train_tokenizer(TEXTS, 150, lowercase=False, model_max_length=64).save_pretrained(tmp_path)
    cased = AutoTokenizer.from_pretrained(tmp_path)
    assert cased.decode(cased("The naïve")["input_ids"], skip_special_tokens=True) == "The naïve"
    assert cased.model_max_length == 64


def test_the_vocabulary_does_not_depend_on_hash_order() -> None:
    # Many pieces that are equally frequent: the plain trainer, whose tables have an order of their
    # own each time, chooses others in each of ten runs.
    words = [a + b + c for a in "abcdefgh" for b in "klmnop" for c in "uvwxyz"]
    texts = [" ".join(words), " ".join(reversed(words))]
    first, *others = (train_tokenizer(iter(texts), 150).get_vocab() for _ in range(6))
    assert len(first) == 150
    assert all(other == first for other in others)


def test_it_learns_what_the_library_learns() -> None:
    # The pieces are those of the plain trainer where frequencies decide, without any tie, and where
    # every character continues some word, because we let it do so in any case.
    counts = {"there": 3, "then": 7, "hen": 20, "tent": 50}
    texts = [word for word, count in counts.items() for _ in range(count)]
    for vocab_size in range(15, 20):
        ours = set(train_tokenizer(texts, vocab_size).get_vocab())
        plain = BertWordPieceTokenizer()
        plain.train_from_iterator(texts, vocab_size=vocab_size, show_progress=False)
        assert ours == set(plain.get_vocab())


def test_a_vocabulary_too_small_for_the_alphabet_says_what_is_needed() -> None:
    with pytest.raises(ValueError, match=r"vocab_size is 20; .* alone are (\d+)") as caught:
        train_tokenizer(TEXTS, 20)
    needed = int(str(caught.value).split(" alone are ")[1].split(";")[0])
    assert len(train_tokenizer(TEXTS, needed)) == needed
    assert len(train_tokenizer(TEXTS, 20, alphabet_size=7)) == 20


def test_the_alphabet_is_that_of_the_most_frequent_characters() -> None:
    known = train_tokenizer(["aaaa bbb cc d"] * 2, 40, alphabet_size=3)
    assert {"a", "b", "c", "##a"} <= set(known.get_vocab())
    assert known.unk_token_id in known("d")["input_ids"]
    chinese = train_tokenizer(["汉字, 汉字!"] * 3, 60).get_vocab()
    assert {"汉", ",", "!"} <= set(chinese)
    assert not {"##汉", "##,", "##!"} & set(chinese)  # words of their own


@pytest.mark.parametrize("texts", [[], [""], [" \n"], iter([])])
def test_no_text_to_learn_from(texts: Any) -> None:
    with pytest.raises(ValueError, match="no text to learn a tokenizer from"):
        train_tokenizer(texts, 100)


def test_one_text_is_no_list_of_texts() -> None:
    with pytest.raises(ValueError, match="texts is one text"):
        train_tokenizer("one text")


# the examples


def test_all_of_the_text_is_used_in_order(tokenizer: Any) -> None:
    texts = [" ".join(TEXTS[: i % 5 + 1]) for i in range(40)]
    examples = tokenize(documents(texts), tokenizer, 24)
    assert examples.column_names == ["input_ids"]
    assert examples.features["input_ids"].feature.dtype == "int32"
    assert {tuple(example[:1] + example[-1:]) for example in ids(examples)} == {
        (tokenizer.cls_token_id, tokenizer.sep_token_id)
    }
    assert max(map(len, ids(examples))) == 24
    plain = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert [i for e in ids(examples) for i in e[1:-1]] == [i for text in plain for i in text]


@pytest.mark.parametrize("capacity", [6, 8, 9, 64, 126])
def test_windows_cover_a_document_and_none_is_a_crumb(capacity: int) -> None:
    for num_tokens in range(4 * capacity):
        windows = cut(num_tokens, capacity)
        borders = [0, *(end for _, end in windows)]
        assert windows == list(pairwise(borders))
        assert borders[-1] == num_tokens
        lengths = [end - start for start, end in windows]
        assert all(0 < length <= capacity for length in lengths)
        assert len(windows) == -(-num_tokens // capacity)  # no more windows than are needed
        assert len(windows) < 2 or min(lengths) * 8 >= capacity


def test_the_name_of_a_special_token_in_a_text_is_text(tokenizer: Any) -> None:
    text = "the [MASK] jumps [SEP] over [PAD][UNK][CLS]"
    [example] = ids(tokenize(documents([text]), tokenizer, 100))
    assert example[0] == tokenizer.cls_token_id
    assert example[-1] == tokenizer.sep_token_id
    known = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}  # "[" is unknown here
    assert not known & set(example[1:-1])
    again = tokenizer("the [MASK]")["input_ids"]
    assert tokenizer.mask_token_id in again  # the tokenizer itself is left as it was


def test_a_tokenizer_without_special_tokens_adds_none() -> None:
    words = {word: i for i, word in enumerate(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    bare = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert ids(tokenize(documents(["a b c d e f g h i j"]), bare, 8)) == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [8, 9],
    ]


def test_documents_that_are_too_short_are_left_out(tokenizer: Any) -> None:
    texts = ["dog", "", "fox dog", None, "the lazy dog"]
    lengths = {
        n: [len(e) - 2 for e in ids(tokenize(documents(texts), tokenizer, 16, min_tokens=n))]
        for n in (0, 1, 2, 3)
    }
    assert lengths[0] == lengths[1] == [1, 2, 3]
    assert lengths[2] == [2, 3]
    assert lengths[3] == [3]


def test_a_stream_gives_a_stream(tokenizer: Any) -> None:
    texts = [" ".join(TEXTS[: i % 5 + 1]) for i in range(40)]
    stream = tokenize(documents(texts).to_iterable_dataset(), tokenizer, 24)
    assert isinstance(stream, datasets.IterableDataset)
    assert stream.column_names == ["input_ids"]
    assert ids(stream) == ids(tokenize(documents(texts), tokenizer, 24))


def test_long_documents_are_tokenized_in_parts(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of them at once would take some hundred bytes for each token."""
    texts = [" ".join(TEXTS[: i % 5 + 1]) for i in range(40)]
    expected = ids(tokenize(documents(texts), tokenizer, 24))
    sizes: list[int] = []
    encode = tokenizer_module._encode

    def watched(given: Any, part: list[str], special: bool) -> Any:
        sizes.append(sum(map(len, part)))
        return encode(given, part, special)

    monkeypatch.setattr(tokenizer_module, "_encode", watched)
    monkeypatch.setattr(tokenizer_module, "_CHARACTERS_AT_ONCE", 300)
    for kind in (documents(texts), documents(texts).to_iterable_dataset()):
        assert ids(tokenize(kind, tokenizer, 24)) == expected
    assert 300 <= max(sizes) < 300 + max(map(len, texts))


def test_another_text_column(tokenizer: Any) -> None:
    renamed = documents(TEXTS).rename_column("text", "body")
    expected = ids(tokenize(documents(TEXTS), tokenizer, 24))
    assert ids(tokenize(renamed, tokenizer, 24, text_column="body")) == expected
    for dataset in (renamed, renamed.to_iterable_dataset()):
        with pytest.raises(ValueError, match=r"no column 'text'.*columns: body, id"):
            tokenize(dataset, tokenizer, 24)


@pytest.mark.parametrize("max_length", [7, 513])
def test_a_length_out_of_range(max_length: int, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=f"max_length is {max_length}; .* at least 8 .*most 512"):
        tokenize(documents(TEXTS), tokenizer, max_length)


@pytest.mark.parametrize("texts", [[], [""], ["dog", "fox"]])
def test_nothing_to_predict(texts: list[str], tokenizer: Any) -> None:
    dataset = datasets.Dataset.from_dict(
        {"text": texts}, features=datasets.Features({"text": datasets.Value("string")})
    )
    parts: list[Any] = [dataset, dataset.to_iterable_dataset()] if texts else [dataset]
    for part in parts:
        with pytest.raises(ValueError, match="no example has a token to predict"):
            tokenize(part, tokenizer, 16)
