"""Pairs against a slow twin, their statistics, every form of input, and what is refused."""

import math
import random
from itertools import pairwise

import datasets
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import RobertaProcessing
from transformers import PreTrainedTokenizerFast

from hf_tfopt.data.sentence_pairs import sentence_pairs
from hf_tfopt.data.sentences import split_sentences
from hf_tfopt.data.tokenizer import train_tokenizer
from tests.references.sentence_pairs import pairs as slow_pairs

WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u")]


def made_documents(num_documents=40, seed=0, most_sentences=9, most_words=12):
    choose = random.Random(seed)
    return [
        [
            " ".join(choose.choices(WORDS, k=choose.randint(1, most_words)))
            for _ in range(choose.randint(1, most_sentences))
        ]
        for _ in range(num_documents)
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(WORDS)] * 3, 200, model_max_length=128)


def marked(num_documents, num_sentences, size):
    """Documents whose every word tells its document: its number in words of one letter each."""
    tokens = [f"d{number}" for number in range(num_documents)]
    return [[" ".join([token] * size)] * num_sentences for token in tokens], tokens


def plain_tokenizer(words):
    """One token for each word, in BERT's template."""
    tokenizer = train_tokenizer([" ".join(WORDS)] * 3, 200, model_max_length=512)
    tokenizer.add_tokens(words)
    return tokenizer


def segments(row, tokenizer):
    """A and B of a row of BERT's: what is between [CLS], [SEP] and [SEP]."""
    ids, types = row["input_ids"], row["token_type_ids"]
    size = types.index(1)
    assert (ids[0], ids[size - 1], ids[-1]) == (
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
        tokenizer.sep_token_id,
    )
    assert types == [0] * size + [1] * (len(ids) - size)
    return ids[1 : size - 1], ids[size:-1]


@pytest.mark.parametrize("task", ["nsp", "sop"])
@pytest.mark.parametrize(
    ("max_length", "short_probability", "seed"),
    [(32, 0.1, 0), (16, 0.5, 1), (9, 0.0, 2), (128, 1, 3)],
)
def test_they_are_the_slow_twins(task, max_length, short_probability, seed, tokenizer):
    documents = made_documents(seed=seed)
    options = {"short_probability": short_probability, "seed": seed}
    rows = sentence_pairs(documents, tokenizer, task, max_length, duplicates=2, **options)
    ids = [tokenizer(d, add_special_tokens=False)["input_ids"] for d in documents]
    expected = [
        pair
        for repeat in (0, 1)
        for pair in slow_pairs(ids, task, max_length - 3, short_probability, seed, repeat)
    ]
    assert [(*segments(row, tokenizer), row["next_sentence_label"]) for row in rows] == expected
    assert rows.column_names == ["input_ids", "token_type_ids", "next_sentence_label"]


def test_half_are_random_and_none_of_the_same_document():
    documents, tokens = marked(60, 40, 6)
    tokenizer = plain_tokenizer(tokens)
    document_of = {tokenizer.convert_tokens_to_ids(token): token for token in tokens}
    rows = sentence_pairs(documents, tokenizer, max_length=40, seed=5)
    others = set()
    for row in rows:
        a, b = segments(row, tokenizer)
        assert len(set(a)) == len(set(b)) == 1, "a segment is of one document"
        assert (a[0] != b[0]) == bool(row["next_sentence_label"])
        others.add((document_of[a[0]], document_of[b[0]]))
    num_random = sum(rows["next_sentence_label"])
    bound = 4 * math.sqrt(len(rows) / 4)  # four standard deviations of a fair coin
    assert abs(num_random - len(rows) / 2) < bound, (num_random, len(rows), "seed 5")
    # 60 * 59 ordered pairs: as many different ones as independent draws give, within 4 sigma
    expected = 3540 * (1 - math.exp(-num_random / 3540))
    assert abs(len({pair for pair in others if pair[0] != pair[1]}) - expected) < 4 * math.sqrt(
        expected
    )


def test_half_are_swapped_and_all_are_consecutive():
    words = [f"w{number}" for number in range(400)]
    documents = [[" ".join(words[i : i + 4]) for i in range(0, 400, 4)]] * 12
    tokenizer = plain_tokenizer(words)
    first = tokenizer.convert_tokens_to_ids("w0")
    rows = sentence_pairs(documents, tokenizer, "sop", max_length=24, seed=1)
    for row in rows:
        a, b = segments(row, tokenizer)
        early, late = (b, a) if row["next_sentence_label"] else (a, b)
        assert early[-1] < late[0] and late[0] - early[-1] < 8, "in the document's order"
        assert all(y - x == 1 for part in (a, b) for x, y in pairwise(part))
        assert min(a) >= first
    num_swapped = sum(rows["next_sentence_label"])
    assert abs(num_swapped - len(rows) / 2) < 4 * math.sqrt(len(rows) / 4), (num_swapped, len(rows))


def test_a_tenth_are_short(tokenizer):
    """One token a sentence and no document's end near: the length is the target itself."""
    documents = [[choice] * 3000 for choice in WORDS[:6]]
    rows = sentence_pairs(documents, tokenizer, "sop", max_length=67, seed=2)
    lengths = [len(row) - 3 for row in rows["input_ids"]]
    num_short = sum(length < 64 for length in lengths)
    share = 0.1 * 62 / 63  # a "short" length may be the longest
    bound = 4 * math.sqrt(len(lengths) * share * (1 - share))
    assert abs(num_short - share * len(lengths)) < bound + 6, (num_short, len(lengths), "seed 2")
    short = [length for length in lengths if length < 64]
    assert min(short) < 12 and max(short) > 52 and max(lengths) == 64


def test_both_ends_of_the_longer_side_are_cut():
    words = [f"w{number}" for number in range(300)]
    tokenizer = plain_tokenizer(words)
    document = [" ".join(words[:200]), " ".join(words[200:203])]
    pairs = sentence_pairs([document] * 40, tokenizer, "sop", 32, short_probability=0)
    fronts = []
    for row in pairs:
        a, b = segments(row, tokenizer)
        long, short = (b, a) if row["next_sentence_label"] else (a, b)
        assert (len(long), len(short)) == (26, 3), "only the longer one is cut"
        fronts.append(long[0] - tokenizer.convert_tokens_to_ids("w0"))
    # 174 tokens cut, each from the front with 1/2: 87 +- 6.6
    assert 60 < min(fronts) < 87 < max(fronts) < 114


def test_put_back_sentences_are_used_again():
    """With "is next" or put back, each sentence is in the pairs of its own document once."""
    words = [f"s{d}x{s}" for d in range(30) for s in range(50)]
    documents = [[words[50 * d + s] for s in range(50)] for d in range(30)]
    tokenizer = plain_tokenizer(words)
    rows = sentence_pairs(documents, tokenizer, max_length=20, seed=0)
    used = []
    for row in rows:
        a, b = segments(row, tokenizer)
        used += a if row["next_sentence_label"] else a + b
    assert len(used) == len(set(used)), "none twice"
    assert len(used) >= 30 * 49, "all but a last one left over"


class TestInputs:
    def test_texts_lists_and_datasets_give_the_same(self, tokenizer):
        documents = made_documents(8)
        texts = ["\n".join(sentence.capitalize() for sentence in d) for d in documents]
        expected = sentence_pairs(documents, tokenizer)[:]
        for given in (
            texts,
            Dataset.from_dict({"text": texts}),
            Dataset.from_dict({"text": documents}),
        ):
            assert sentence_pairs(given, tokenizer)[:] == expected
        named = Dataset.from_dict({"body": texts, "id": list(range(8))})
        assert sentence_pairs(named, tokenizer, text_column="body")[:] == expected
        lines = ["\n".join(document) for document in documents]
        assert sentence_pairs(lines, tokenizer, splitter=str.splitlines)[:] == expected

    def test_a_selection_is_honoured(self, tokenizer):
        dataset = Dataset.from_dict({"text": made_documents(12)})
        chosen = [7, 3, 9, 0, 11]
        selected = sentence_pairs(dataset.select(chosen), tokenizer)[:]
        assert selected == sentence_pairs([dataset[i]["text"] for i in chosen], tokenizer)[:]

    def test_the_number_of_processes_changes_nothing(self, tokenizer):
        dataset = Dataset.from_dict({"text": made_documents(30)})
        one = sentence_pairs(dataset, tokenizer)
        assert sentence_pairs(dataset, tokenizer, num_proc=2)[:] == one[:]

    def test_a_function_of_the_seed_alone(self, tokenizer):
        documents = made_documents()
        first = sentence_pairs(documents, tokenizer, seed=3)
        random.seed(1)
        again = sentence_pairs(documents, tokenizer, seed=3)
        assert first[:] == again[:]
        assert first._fingerprint == again._fingerprint
        other = sentence_pairs(documents, tokenizer, seed=4)
        assert first[:] != other[:] and first._fingerprint != other._fingerprint

    def test_duplicates_are_other_pairs(self, tokenizer):
        documents = made_documents()
        once = sentence_pairs(documents, tokenizer)[:]["input_ids"]
        thrice = sentence_pairs(documents, tokenizer, duplicates=3)[:]["input_ids"]
        assert thrice[: len(once)] == once
        assert thrice[len(once) : 2 * len(once)] != once

    def test_documents_without_text_are_left_out(self, tokenizer):
        documents = made_documents(6)
        with_empty = [
            None,
            documents[0],
            [],
            *documents[1:3],
            [""],
            ["", *documents[3]],
            *documents[4:],
        ]
        given = Dataset.from_dict({"text": with_empty})
        assert sentence_pairs(given, tokenizer)[:] == sentence_pairs(documents, tokenizer)[:]

    def test_a_special_tokens_name_in_a_text_is_text(self, tokenizer):
        documents = [["[MASK] ba [SEP]", "be bi [CLS]"], ["bo bu", "[MASK]"]]
        for row in sentence_pairs(documents, tokenizer, "sop"):
            assert row["input_ids"].count(tokenizer.sep_token_id) == 2
            assert tokenizer.mask_token_id not in row["input_ids"]

    def test_another_template(self):
        """RoBERTa's, with two separators and one token type."""
        backend = Tokenizer(
            models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, "<unk>")
        )
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        backend.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
        rows = sentence_pairs([["ba be", "bi"]], tokenizer, "sop", 16, short_probability=0)
        (row,) = rows
        a, b = ("bi", "ba be") if row["next_sentence_label"] else ("ba be", "bi")
        assert row["input_ids"] == tokenizer(a, b)["input_ids"]
        assert row["token_type_ids"] == [0] * 7


SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


class TestBadInput:
    def check(self, tokenizer, match, documents=None, **options):
        with pytest.raises(ValueError, match=match):
            sentence_pairs(documents or made_documents(4), tokenizer, **options)

    def test_one_document(self, tokenizer):
        self.check(tokenizer, "1 of the documents has text.*another", [["ba be", "bi"], [""], []])
        assert len(sentence_pairs([["ba be", "bi"]], tokenizer, "sop")) == 1

    @pytest.mark.parametrize("task", ["nsp", "sop"])
    def test_no_documents(self, tokenizer, task):
        for empty in ([], (), Dataset.from_list([]), Dataset.from_dict({"text": []})):
            with pytest.raises(ValueError, match=f"an empty {type(empty).__name__}; give at least"):
                sentence_pairs(empty, tokenizer, task)

    def test_no_document_with_text(self, tokenizer):
        self.check(tokenizer, "0 of the documents", ["", "  "])
        self.check(tokenizer, "two sentences", ["", "  "], task="sop")

    def test_documents_that_are_single_sentences(self, tokenizer):
        self.check(tokenizer, "are the documents lines", ["ba be", "bi bo"])

    def test_an_unknown_task(self, tokenizer):
        self.check(tokenizer, "did you mean 'nsp'", task="nps")

    @pytest.mark.parametrize("max_length", [7, 129])
    def test_a_length_out_of_range(self, tokenizer, max_length):
        self.check(tokenizer, f"max_length is {max_length}.*8.*128", max_length=max_length)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("short_probability", 1.5), ("short_probability", -1), ("duplicates", 0)],
    )
    def test_a_number_out_of_range(self, tokenizer, name, value):
        self.check(tokenizer, f"{name} is {value}", **{name: value})

    def test_a_tokenizer_without_a_separator(self):
        backend = Tokenizer(
            models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, "<unk>")
        )
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
        self.check(tokenizer, "no separator")

    def test_something_else_than_documents(self, tokenizer):
        splits = datasets.DatasetDict({"train": Dataset.from_dict({"text": ["a"]})})
        self.check(tokenizer, r"DatasetDict.*\['train'\]", splits)
        self.check(tokenizer, "documents is a str", "a text")
        self.check(tokenizer, "column", Dataset.from_dict({"txt": ["a"]}))

    def test_texts_beside_lists(self, tokenizer):
        self.check(tokenizer, "all as texts, or all as lists", [["ba be", "bi"], "bo bu. Ba be."])

    def test_a_document_that_is_a_number(self, tokenizer):
        self.check(tokenizer, "a text or a list of sentences", [1, 2])


class TestSplitting:
    @pytest.mark.parametrize(
        ("text", "sentences"),
        [
            ("It works. Does it? It does!", ["It works.", "Does it?", "It does!"]),
            ("Pi is 3.14 or so. Yes.", ["Pi is 3.14 or so.", "Yes."]),
            ("See Fig. 3 of J. Smith et al. 2019.", ["See Fig. 3 of J. Smith et al. 2019."]),
            ('He said "No." Then he left.', ['He said "No."', "Then he left."]),
            ("wait ... what. no", ["wait ... what. no"]),
            ("one line\nAnother\n\nthird", ["one line", "Another", "third"]),
            ("a line that is\nwrapped. Next", ["a line that is wrapped.", "Next"]),
            ("これは文。それも！はい", ["これは文。", "それも！", "はい"]),
            ("यह है। वह है।", ["यह है।", "वह है।"]),
            ("", []),
            (" \n\n ", []),
            ("...", ["..."]),
        ],
    )
    def test_rules(self, text, sentences):
        assert split_sentences(text) == sentences

    def test_no_character_is_lost(self):
        text = "".join(random.Random(0).choices("ab. A!?\n\"'。 ", k=3000))
        assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())
