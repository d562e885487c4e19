import json
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_tfopt.run.attention_maps import attention_maps
from tests.models import TINY, tiny

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{i}" for i in range(90))]
SENTENCE = "w1 w2 w3 w4 w5 w6"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]"
    )


@pytest.mark.parametrize("name", TINY)
def test_maps_are_the_hosts_eager_ones(name: str, tokenizer: Any) -> None:
    model = tiny(name).train()
    flags = [module.training for module in model.modules()]
    found = attention_maps(model, tokenizer, [SENTENCE, "w7"])
    assert [module.training for module in model.modules()] == flags
    assert found[0]["tokens"] == ["[CLS]", *SENTENCE.split(), "[SEP]"]
    assert found[1]["tokens"] == ["[CLS]", "w7", "[SEP]"] and found[1]["sentence"] == "w7"
    model.eval().set_attn_implementation("eager")
    ids = tokenizer(SENTENCE, return_tensors="pt")["input_ids"]
    is_pair = model.config.is_encoder_decoder
    outputs = model(input_ids=ids, output_attentions=True, **({"labels": ids} if is_pair else {}))
    expected = outputs.encoder_attentions if is_pair else outputs.attentions
    maps = torch.tensor(found[0]["layers"])
    # rounded to 3 digits
    torch.testing.assert_close(maps, torch.stack(list(expected))[:, 0], rtol=0, atol=6e-4)
    assert found[0]["num_heads"] == maps.shape[1] == 2
    assert len(found[0]["names"]) == len(maps) == len({*found[0]["names"]})


def test_long_sentences_are_cut(tokenizer: Any) -> None:
    (found,) = attention_maps(tiny("bert"), tokenizer, ["w1 " * 100], max_tokens=10)
    assert found["tokens"] == ["[CLS]", *["w1"] * 8, "[SEP]"]


def test_the_numbers_stay_few(tokenizer: Any, monkeypatch: Any) -> None:
    model = tiny("bert")
    every = attention_maps(model, tokenizer, [SENTENCE] * 3)
    numbers = 3 * 2 * 2 * 8 * 8
    for most, heads, sentences in ((numbers, 2, 3), (numbers - 1, 1, 3), (numbers // 3, 1, 2)):
        monkeypatch.setattr("hf_tfopt.run.attention_maps._MOST_NUMBERS", most)
        found = attention_maps(model, tokenizer, [SENTENCE] * 3)
        assert [len(each["layers"][0]) for each in found] == [heads] * sentences
        assert all(each["num_heads"] == 2 for each in found)
    mean = torch.tensor(every[0]["layers"]).mean(1)
    torch.testing.assert_close(torch.tensor(found[0]["layers"])[:, 0], mean, rtol=0, atol=1.1e-3)


def test_a_run_file_stays_small(tokenizer: Any) -> None:
    """As many numbers as there may be: 2 layers of 2 heads, sentences of 24 tokens."""
    found = attention_maps(tiny("bert"), tokenizer, ["w1 " * 30] * 40)
    assert len(found) == 34 and len(json.dumps(found)) < 320_000


def test_what_cannot_be_shown_is_refused(tokenizer: Any) -> None:
    model = tiny("bert")
    for layer in model.bert.encoder.layer:
        layer.attention.self.forward = lambda states, *_, **__: (states, None)
    with pytest.raises(ValueError, match="attention of BertForMaskedLM is not seen"):
        attention_maps(model, tokenizer, [SENTENCE])
