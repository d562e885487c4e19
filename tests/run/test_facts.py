import platform
import re

import datasets
import torch
from transformers import BertConfig, BertForMaskedLM

from hf_tfopt.run.facts import (
    data_facts,
    environment_facts,
    has_fast_bfloat16,
    hub_names,
    model_facts,
    processor,
)


def test_text_is_counted_as_it_is_selected():
    texts = [" one  two\nthree ", "", "four", "five six"]
    documents = datasets.Dataset.from_dict({"text": texts}).select([0, 2, 1])
    rows = datasets.Dataset.from_dict({"input_ids": [[1] * 8, [1] * 6, [1] * 99]}).select([1, 0])
    assert data_facts(documents, rows, width=8) == {
        "documents": 3,
        "words": 4,
        "tokens": 14,
        "rows": 2,
        "fullness": 14 / 16,
    }


def test_columns_of_texts_and_of_lists_of_words_are_counted_with_their_classes():
    found = {"text": ["one two", "three"], "words": [["a b", "c"], []], "label": [3, 3]}
    rows = datasets.Dataset.from_dict({"input_ids": [[1] * 4, [1]]})
    texts = datasets.Dataset.from_dict(found)
    assert data_facts(texts, rows, columns=("text", "words"), label="label") == {
        "words": 5,
        "tokens": 5,
        "rows": 2,
        "classes": 1,
    }


def test_tied_weights_are_counted_once():
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    model = BertForMaskedLM(BertConfig(vocab_size=11, num_hidden_layers=3, **sizes))
    facts = model_facts(model)
    distinct = {id(parameter): parameter.numel() for parameter in model.parameters()}
    assert facts["parameters"] == sum(distinct.values())
    assert (facts["class"], facts["layers"], facts["vocabulary"]) == ("BertForMaskedLM", 3, 11)


def test_the_environment_tells_versions_and_no_name_of_the_machine():
    facts = environment_facts(torch.device("cpu"), num_processes=2)
    assert facts["torch"] == torch.__version__ and facts["processes"] == 2
    told = " ".join(map(str, facts.values()))
    assert platform.node() not in told and not re.search(r"/\w+/", told)
    assert facts["memory"].endswith(" GiB") and facts["processor"]


def test_the_processor_is_told_by_its_kind(tmp_path):
    told = tmp_path / "cpuinfo"
    told.write_text("processor : 0\nmodel name\t: A  Processor @ 2 GHz\nmodel name\t: B\n")
    assert processor(told) == "A Processor @ 2 GHz"
    assert processor(tmp_path / "none") == platform.machine()


def test_names_of_the_hub_are_told_from_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "base").mkdir(parents=True)
    recipe = {
        "model": "runs/base",
        "teacher": "owner/teacher",
        "train": "owner/texts:part",
        "corpus": "data/texts.jsonl",
        "eval": str(tmp_path / "x"),
        "test": None,
        "output_dir": "owner/name",
    }
    assert hub_names(recipe) == {"teacher": "owner/teacher", "train": "owner/texts:part"}
    for name in ("../x/y", "./x", "a/b/c", "hf://a/b", "a/..", "~/x", "bert", "a/b:", "-a/b"):
        assert not hub_names({"model": name}), name


def test_bfloat16_is_fast_only_where_the_hardware_says_so(monkeypatch):
    def abilities(**found):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
        return has_fast_bfloat16(torch.device("cpu"))

    assert abilities(amx_bf16=True) and abilities(avx512_bf16=True)
    assert not abilities(amx_bf16=False, avx2=True)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not has_fast_bfloat16(torch.device("cpu"))
    assert not has_fast_bfloat16(torch.device("mps"))
