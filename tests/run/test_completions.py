from types import SimpleNamespace

import pytest
import torch

from hf_tfopt.data.tokenizer import train_tokenizer
from hf_tfopt.run.completions import blanks, complete

SENTENCES = [
    "The small cat watches the garden every morning.",
    "My teacher repairs the broken engine with great patience.",
    "Nobody in the village remembers when the bridge was built.",
]
DOCUMENTS = [
    " ".join(SENTENCES),
    *SENTENCES * 4,
    "too short.",
    "",
    "no capital here, and so no use",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS, 300)


class CountingModel:
    """Logits that grow with the token id, so that the best guesses are the last ids."""

    device = torch.device("cpu")

    def __init__(self, size):
        self.size, self.seen = size, []

    def eval(self):
        return self

    def __call__(self, input_ids):
        self.seen.append(input_ids[0].tolist())
        logits = torch.arange(float(self.size)).expand(*input_ids.shape, self.size)
        return SimpleNamespace(logits=logits)


def test_one_word_of_a_whole_sentence_is_taken_out(tokenizer):
    found = blanks(DOCUMENTS, tokenizer, count=8)
    assert len(found) == 8
    for before, word, after in found:
        assert f"{before}{word}{after}" in SENTENCES
        assert word.isalpha() and len(word) >= 4
        assert len(tokenizer.tokenize(word)) == 1


def test_the_choice_is_the_seeds(tokenizer):
    assert blanks(DOCUMENTS, tokenizer, seed=3) == blanks(DOCUMENTS, tokenizer, seed=3)
    assert blanks(DOCUMENTS, tokenizer, seed=3) != blanks(DOCUMENTS, tokenizer, seed=4)


def test_a_text_without_sentences_gives_none(tokenizer):
    assert blanks(DOCUMENTS[-3:], tokenizer) == []
    assert blanks([], tokenizer) == []


def test_the_model_sees_the_mask_and_never_the_word(tokenizer):
    found = blanks(DOCUMENTS, tokenizer, count=3)
    model = CountingModel(len(tokenizer))
    results = complete(model, tokenizer, found, top=2)
    for blank, ids, result in zip(found, model.seen, results, strict=True):
        assert ids.count(tokenizer.mask_token_id) == 1
        assert tokenizer.convert_tokens_to_ids(blank.word.lower()) not in ids
        restored = tokenizer("".join(blank))["input_ids"]
        assert sum(a != b for a, b in zip(ids, restored, strict=True)) == 1
        assert (result["before"], result["word"], result["after"]) == blank
    last = tokenizer.convert_ids_to_tokens([len(tokenizer) - 1, len(tokenizer) - 2])
    best = torch.arange(float(len(tokenizer))).softmax(0)[[-1, -2]].tolist()
    shown = [token.removeprefix("##") for token in last]
    assert [word.removeprefix("##") for word, _ in results[0]["guesses"]] == shown
    assert [share for _, share in results[0]["guesses"]] == pytest.approx(best)


def test_a_repeated_word_is_hidden_where_the_blank_is(tokenizer):
    [blank] = blanks(
        ["The garden watches the garden and the garden once more."], tokenizer, count=1
    )
    model = CountingModel(len(tokenizer))
    complete(model, tokenizer, [blank])
    masked = tokenizer(f"{blank.before}[MASK]{blank.after}")["input_ids"]
    assert model.seen == [masked]
