"""Parts of a model by label or pattern."""

import pytest

import hf_tfopt as tfo
from tests.models import tiny


def frozen(model) -> set[str]:
    return {name for name, p in model.named_parameters() if not p.requires_grad}


def test_labels_stacks_and_patterns() -> None:
    model = tiny("bert")
    report = tfo.freeze(model, ["embeddings", "encoder.0", r"LayerNorm\.bias$"])
    names = [name for name, _ in model.named_parameters()]
    assert report["encoder.0"] == [n for n in names if "encoder.layer.0." in n]
    assert report["embeddings"] == [n for n in names if n.startswith("bert.embeddings.")]
    assert report[r"LayerNorm\.bias$"] == [n for n in names if n.endswith("LayerNorm.bias")]
    assert frozen(model) == {name for part in report.values() for name in part}
    assert "bert.encoder.layer.1.attention.self.query.weight" not in frozen(model)
    other = tiny("bert")
    both = tfo.freeze(other, "encoder")["encoder"]
    assert {n for n in names if "encoder.layer." in n} <= set(both)


@pytest.mark.parametrize("name", ["gpt2", "t5", "distilbert", "albert", "modernbert", "bart"])
def test_other_families_have_the_monitors_labels(name: str) -> None:
    model = tiny(name)
    found = tfo.freeze(model, ["embeddings"])["embeddings"]
    assert found and frozen(model) == set(found)


@pytest.mark.parametrize(
    ("part", "match"),
    [
        ("encoder.2", r"did you mean 'encoder\.[01]'"),
        ("embedings", "did you mean 'embeddings'"),
        ("layer.[0", "no regular expression"),
    ],
)
def test_unknown_parts_are_answered(part: str, match: str) -> None:
    model = tiny("bert")
    with pytest.raises(ValueError, match=match):
        tfo.freeze(model, ["head", part])
    assert not frozen(model)


def test_something_is_left_to_train() -> None:
    model = tiny("bert")
    with pytest.raises(ValueError, match="nothing would be left"):
        tfo.freeze(model, ["embeddings", "encoder", "head"])
    assert not frozen(model)
