"""A run with `push_to`: refused before it begins, or pushed at its end, and never lost by it."""

from pathlib import Path

import pytest
import yaml

from hf_tfopt.cli import main
from hf_tfopt.hub import PushError
from tests.fake_hub import FakeHub, Fault
from tests.scripts.loaded import as_flags, load_script

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    corpus = tmp_path / "texts.txt"
    corpus.write_text(
        "\n\n".join(f"the {n} boats carry the {n % 7} cats home ." for n in range(90))
    )
    given = {
        "corpus": corpus,
        "output_dir": tmp_path / "out",
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 32,
        "max_length": 32,
        "vocab_size": 160,
        "batch_size": 4,
        "max_steps": 2,
        "device": "cpu",
        "precision": "fp32",
    }
    return ["bert-tiny", *as_flags(given)]


def test_what_cannot_be_pushed_is_not_trained(
    hub: FakeHub, flags: list[str], tmp_path: Path
) -> None:
    pretrain = load_script("pretrain")
    hub.repositories["me/public"] = {}
    for name, says in {
        "../model": r"did you mean 'model'\?",
        "https://huggingface.co/me/model": "did you mean 'me/model'",
        "other/model": "not yours to write",
        "me/public": "there already and public",
    }.items():
        with pytest.raises(PushError, match=says):
            pretrain.main([*flags, "--push_to", name])
    assert not (tmp_path / "out").exists()


def test_a_run_outlives_its_push_and_can_be_pushed_again(
    hub: FakeHub, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    hub.faults = [Fault("POST .*/commit/", 403, 9)]
    metrics = load_script("pretrain").main([*flags, "--push_to", "me/model"])
    assert metrics["steps"] == 2
    assert f"To push it: hf-tfopt push {out} me/model\n" in capsys.readouterr().err
    assert {"model.safetensors", "README.md", "report.html", "run.json"} <= {
        path.name for path in out.iterdir()
    }
    assert not hub.repositories["me/model"]
    hub.faults = []
    num_uploaded = len(hub.uploaded)
    main(["push", str(out), "me/model"])
    assert len(hub.uploaded) == num_uploaded
    pushed = hub.repositories["me/model"]
    assert {"model.safetensors", "tokenizer.json", "README.md", "report.html"} <= {*pushed}
    assert not {"run.json", "log.jsonl", "training_args.bin"} & {*pushed}
    assert not any(str(tmp_path).encode() in content for content in pushed.values())
    recipe = yaml.safe_load(pushed["recipe.yaml"])
    assert (recipe["corpus"], recipe["output_dir"]) == ("texts.txt", None)
    assert b'model="me/model"' in pushed["README.md"]
    assert hub.private["me/model"] is True
