"""A MultitaskModel is pushed to a Hub, opened from there, and so is each of its exported models."""

import os
import subprocess
import sys
from pathlib import Path

from tests.fake_hub import fake_hub

# The Hub's address is read when huggingface_hub is imported: each side is a process of its own.
PUSH = """
import torch
from tests.surgery.test_multitask import inputs, made

model = made()
model.push_to_hub("me/one-for-all")
model.export("topic").push_to_hub("me/topic")
batch = inputs()
with torch.no_grad():
    torch.save(model(**batch, task="topic").logits["topic"], "pushed.pt")
"""
OPEN = """
import torch
from transformers import AutoModelForSequenceClassification
from hf_tfopt.surgery.multitask import MultitaskModel
from tests.surgery.test_multitask import inputs, made

batch, pushed = inputs(), torch.load("pushed.pt")
model, report = MultitaskModel.from_pretrained("me/one-for-all", output_loading_info=True)
assert not any(report.values()), report
before = made().state_dict()
assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
plain = AutoModelForSequenceClassification.from_pretrained("me/topic")
with torch.no_grad():
    assert torch.equal(model(**batch, task="topic").logits["topic"], pushed)
    # the plain model's encoder sees the same rows in the same order
    torch.testing.assert_close(plain(**batch).logits, pushed, rtol=1e-6, atol=1e-6)
assert plain.config.id2label == {0: "a", 1: "b", 2: "c"}
"""


def test_pushed_as_one_model_and_opened_again(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    with fake_hub() as (hub, environment):
        for code in (PUSH, OPEN):
            home = {"HF_HOME": str(tmp_path / f"home{len(hub.requests)}"), "PYTHONPATH": root}
            kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
            subprocess.run(
                [sys.executable, "-c", code],
                env={**kept, **environment, **home},
                cwd=tmp_path,
                check=True,
                timeout=120,
            )
    assert {"model.safetensors", "config.json"} <= {*hub.repositories["me/one-for-all"]}
    assert {"model.safetensors", "config.json"} <= {*hub.repositories["me/topic"]}
    # opened by a home that had nothing: it came from there
    assert any(r.startswith("GET /me/one-for-all/resolve/") for r in hub.requests)
