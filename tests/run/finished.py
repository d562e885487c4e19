"""A finished run to report on, written by hand."""

import math

from hf_tfopt.recipe.keys import load_recipe
from hf_tfopt.run.folder import Run, write_run, write_text

HOSTILE = "<script>alert(1)</script> | `a` [x](http://y) \n---\nlicense: evil"


def history(last=50):
    entries = []
    for step in range(5, last + 1, 5):
        loss = 3 + math.exp(-step / 20)
        entries.append({"step": step, "loss": loss, "learning_rate": 0.1, "grad_norm": 1.0 / step})
        if step % 25 == 0:
            entries.append({"step": step, "eval_loss": loss, "eval_perplexity": math.exp(loss)})
    return entries


def finished_run(text="a word", recipe=None):
    return Run(
        name="run",
        metrics={
            "eval_loss": 3.25,
            "perplexity": 25.79,
            "train_seconds": 171.2,
            "steps": 50,
            "tokens_per_second": 12345.6,
        },
        recipe=recipe or {},
        history=history(),
        data={"train": {"documents": 1234, "fullness": 0.9912}, "eval": {"documents": 12}},
        model={"class": "BertForMaskedLM", "layers": 2},
        examples=[
            {
                "before": f"{text} is ",
                "word": "Closed",
                "after": " now.",
                "guesses": [["open", 0.31], ["closed", 0.08]],
            }
        ],
        environment={"torch": "2.13.0"},
    )


def write_finished_run(folder, text="a word", **overrides):
    folder.mkdir(parents=True)
    recipe = load_recipe("bert-tiny", overrides)
    write_text(folder / "recipe.yaml", recipe.to_yaml())
    write_run(folder, finished_run(text))
    return folder
