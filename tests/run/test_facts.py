import platform

import datasets
import torch
from transformers import BertConfig, BertForMaskedLM

from hf_tfopt.run.facts import data_facts, environment_facts, has_fast_bfloat16, model_facts


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
    assert platform.node() not in told and "/" not in told


def test_bfloat16_is_fast_only_where_the_hardware_says_so(monkeypatch):
    def abilities(**found):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
        return has_fast_bfloat16(torch.device("cpu"))

    assert abilities(amx_bf16=True) and abilities(avx512_bf16=True)
    assert not abilities(amx_bf16=False, avx2=True)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not has_fast_bfloat16(torch.device("cpu"))
    assert not has_fast_bfloat16(torch.device("mps"))
