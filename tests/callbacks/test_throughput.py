"""Times, tokens and FLOPs, with a clock that tells what the test wants."""

import json
import math
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback

import hf_tfopt as tfo
from hf_tfopt.callbacks.model_flops import model_flops, peak_flops_of, token_counts
from hf_tfopt.callbacks.step_clock import StepClock, WallStamps
from hf_tfopt.callbacks.throughput import num_to_come
from tests.callbacks.runs import trainer_with
from tests.invariants.splits import Rows
from tests.models import tiny
from tests.processes import TwoInterpreters
from tests.test_trainer import arguments

PARTS = ("data", "forward", "backward", "optimizer", "callbacks")


def logs_of(trainer: Trainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


class Late(WallStamps):
    """A device that has done what was given to it only when it is said so."""

    def __init__(self) -> None:
        self.given = 0
        self.done = 0

    def now(self) -> float:
        self.given += 1
        return float(self.given)

    def is_known(self, stamp: float) -> bool:
        return stamp <= self.done


def test_the_clock_adds_laps_of_whole_steps_that_are_known() -> None:
    stamps = Late()
    clock = StepClock(stamps)  # 1
    for _ in range(2):
        clock.lap("data")  # 2, 5
        clock.lap("forward")  # 3, 6
        clock.lap("data")  # 4, 7
        clock.end_step()
    stamps.done = 6
    times = clock.collect()
    assert (times.num_steps, times.seconds) == (1, {"data": 2.0, "forward": 1.0})
    assert clock.collect().num_steps == 0
    stamps.done = 7
    assert clock.collect().seconds == {"data": 2.0, "forward": 1.0}


def test_the_clock_keeps_no_step_that_is_known() -> None:
    clock = StepClock(WallStamps())
    for _ in range(5):
        clock.lap("data")
        clock.end_step()
        assert len(clock._waiting) == 0
    assert clock.collect().num_steps == 5


def test_the_first_steps_are_not_timed() -> None:
    clock = StepClock(WallStamps(), num_warmup_steps=2)
    for _ in range(3):
        clock.lap("data")
        clock.end_step()
    assert clock.is_warm
    assert clock.collect().num_steps == 1


class Slow(Dataset):
    """Eight rows take so long."""

    def __init__(self, seconds: float):
        self.rows = Rows(32)
        self.seconds = seconds

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        time.sleep(self.seconds / 8)
        return self.rows[number]


class Sleeper(TrainerCallback):
    """Takes a while in the events that it is told."""

    def __init__(self, **seconds: float):
        for event, duration in seconds.items():
            setattr(self, event, lambda *_, _duration=duration, **__: time.sleep(_duration))


def slow_forward(trainer: Trainer, seconds: float) -> Any:
    return trainer.model.register_forward_pre_hook(lambda *_: time.sleep(seconds))


def slow_backward(trainer: Trainer, seconds: float) -> Any:
    weight = trainer.model.get_input_embeddings().weight
    return weight.register_hook(lambda grad: time.sleep(seconds))


@pytest.mark.parametrize("how", ["tfopt", "attach"])
@pytest.mark.parametrize("part", [*PARTS, "saving"])
def test_a_delay_is_found_where_it_is(part: str, how: str, tmp_path: Path) -> None:
    """Each micro-batch's two hundredths of a second; a step has two of them."""
    delay = 0.02
    monitor = tfo.ThroughputMonitor(num_warmup_steps=1)
    sleeper = {
        "callbacks": Sleeper(on_substep_end=delay, on_step_end=delay),
        "saving": Sleeper(on_save=2 * delay),
    }.get(part)
    options = {"save_strategy": "steps", "save_steps": 1} if part == "saving" else {}
    trainer = trainer_with(tmp_path, [monitor], how, **options)
    if sleeper is not None:
        trainer.add_callback(sleeper)
    if part == "data":
        trainer.train_dataset = Slow(2 * delay)
    if part == "forward":
        slow_forward(trainer, delay)
    if part == "backward":
        slow_backward(trainer, delay)
    if part == "optimizer":
        trainer.optimizer_cls_and_kwargs = None
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1e-3)
        trainer.optimizer.register_step_pre_hook(lambda *_: time.sleep(2 * delay))
    trainer.train()
    logs = logs_of(trainer)
    assert "time/step" not in logs[0], "the first step is not timed"
    found = logs[2]
    if part == "saving":  # which is not of the step, but of what remains
        assert found["time/remaining"] >= 2 * delay
    else:
        assert found[f"time/{part}"] >= 2 * delay
    others = sum(found[f"time/{name}"] for name in PARTS if name != part)
    assert others + found.get(f"time/{part}", 0) <= found["time/step"] + 1e-9


def test_the_parts_are_all_of_a_step_and_steps_are_all_of_the_run(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, [tfo.ThroughputMonitor(num_warmup_steps=0)], logging_steps=4)
    begin = time.perf_counter()
    trainer.train()
    whole = time.perf_counter() - begin
    found = logs_of(trainer)[0]
    assert sum(found[f"time/{part}"] for part in PARTS) > 0.8 * found["time/step"]
    assert 4 * found["time/step"] < whole
    # two processes of 32 rows of 12 places each
    assert found["time/tokens_per_second"] * found["time/step"] == pytest.approx(8 * 12)
    assert found["time/remaining"] == 0


def test_evaluation_is_not_of_the_step_but_of_what_remains(tmp_path: Path) -> None:
    delay = 0.1
    monitor = tfo.ThroughputMonitor(num_warmup_steps=1)
    options = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 4}
    trainer = trainer_with(tmp_path, [monitor], **options)
    trainer.add_callback(Sleeper(on_prediction_step=delay))  # two batches of 4 rows
    trainer.train()
    logs = logs_of(trainer)
    assert min(entry["time/step"] for entry in logs[1:]) < 2 * delay
    # a step and the evaluation after it
    assert logs[2]["time/remaining"] >= 2 * delay
    assert logs[3]["time/remaining"] == 0


class Padded(Rows):
    """Rows of which the last four of twelve places are padding."""

    def __init__(self, num_rows: int):
        super().__init__(num_rows)
        self.batch = {name: value.clone() for name, value in self.batch.items()}
        self.batch["attention_mask"][:, 8:] = 0


def test_padding_counts_as_no_token(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, [tfo.ThroughputMonitor(num_warmup_steps=0)], logging_steps=2)
    trainer.train_dataset = Padded(32)
    trainer.train()
    for entry in logs_of(trainer):
        assert entry["padding_share"] == pytest.approx(4 / 12)
        assert entry["time/tokens_per_second"] * entry["time/step"] == pytest.approx(8 * 8)


def test_a_stock_trainer_tells_steps_and_what_remains(tmp_path: Path) -> None:
    monitor = tfo.ThroughputMonitor(num_warmup_steps=1)
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=1, save_strategy="epoch")
    data = {"train_dataset": Rows(12), "eval_dataset": Rows(4)}
    trainer = Trainer(tiny("bert"), args, callbacks=[monitor], **data)
    trainer.train()
    found = logs_of(trainer)[-1]
    assert {"time/step", "time/remaining"} <= found.keys()
    assert not {"time/forward", "time/tokens_per_second", "padding_share"} & found.keys()


def test_nothing_listens_before_or_after(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, [tfo.ThroughputMonitor(), tfo.ThroughputMonitor()])
    owners = (trainer, trainer.accelerator, trainer.callback_handler)
    before = [set(vars(owner)) for owner in owners]
    trainer.train()
    methods = {"get_batch_samples", "backward", "call_event"}
    for owner, known in zip(owners, before, strict=True):
        assert not methods & (set(vars(owner)) - known)


def test_an_evaluation_before_training_under_a_stock_trainer(tmp_path: Path) -> None:
    args = arguments(tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2)
    args.eval_on_start = True
    monitor = tfo.ThroughputMonitor(num_warmup_steps=0)
    data = {"train_dataset": Rows(32), "eval_dataset": Rows(8, seed=1)}
    trainer = Trainer(tiny("bert"), args, callbacks=[monitor], **data)
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    assert logs_of(trainer)[-1]["time/step"] > 0


class Predicter(TrainerCallback):
    """Predicts after the first step; broken off: an error comes between."""

    def __init__(self, is_broken_off: bool = False):
        self.is_broken_off = is_broken_off
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.trainer.predict(Rows(8, seed=1))

    def on_prediction_step(self, *given: Any, **kwargs: Any) -> None:
        if self.is_broken_off:
            raise KeyError


@pytest.mark.parametrize("is_broken_off", [False, True])
def test_a_prediction_within_training_ends_no_timing(is_broken_off: bool, tmp_path: Path) -> None:
    predicter = Predicter(is_broken_off)
    trainer = trainer_with(tmp_path, [tfo.ThroughputMonitor(num_warmup_steps=0)])
    predicter.trainer = trainer
    if is_broken_off:
        predict = trainer.predict

        def quietly(rows: Any) -> None:
            with suppress(KeyError):
                predict(rows)

        trainer.predict = quietly
    trainer.add_callback(predicter)
    trainer.train()
    for entry in logs_of(trainer)[1:]:
        assert all(entry[f"time/{part}"] > 0 for part in PARTS)


def test_flops_are_those_of_the_papers_formula() -> None:
    """Of a decoder whose head is a table of its own, every token labelled: 6·N + 12·L·H·Q·T."""
    model = tiny("llama")
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    flops = model_flops(model)
    assert flops is not None
    rows, length = 3, 12
    weights = sum(p.numel() for p in model.parameters()) - model.model.embed_tokens.weight.numel()
    config = model.config
    width = config.num_attention_heads * (config.hidden_size // config.num_attention_heads)
    per_token = 6 * weights + 12 * config.num_hidden_layers * width * length
    num = rows * length
    assert flops.of(num, rows * length**2, num) == num * per_token


def test_only_labelled_tokens_pass_a_tied_head_and_frozen_weights_take_less() -> None:
    model = tiny("bert")
    flops = model_flops(model)
    assert flops is not None
    table = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is table
    assert flops.of_label == 6 * table.numel()
    embeddings = model.bert.embeddings
    looked_up = sum(p.numel() for n, p in embeddings.named_parameters() if "_embeddings" in n)
    body = sum(p.numel() for p in model.parameters()) - looked_up
    assert flops.of_token == 6 * body
    config = LoraConfig(r=2, target_modules=["query"])
    adapted: Any = get_peft_model(tiny("bert"), config)
    less = model_flops(adapted)
    assert less is not None
    added = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert less.of_token == 4 * body + 6 * added


@pytest.mark.parametrize("name", ["t5", "albert"])
def test_what_the_formula_does_not_hold_for_has_no_flops(name: str) -> None:
    assert model_flops(tiny(name)) is None


def test_mfu_is_flops_over_time_and_peak(tmp_path: Path) -> None:
    monitor = tfo.ThroughputMonitor(peak_flops=1e9, num_warmup_steps=0)
    trainer = trainer_with(tmp_path, [monitor], logging_steps=4)
    trainer.train()
    found = logs_of(trainer)[0]
    flops = model_flops(trainer.model)
    assert flops is not None
    labels = sum(int((row["labels"] != -100).sum()) for row in trainer.train_dataset)
    expected = flops.of(32 * 12, 32 * 12**2, labels) / 4
    assert found["time/mfu"] == pytest.approx(expected / found["time/step"] / 1e9)


def ids(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.long)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"input_ids": ids(2, 5)}, [10, 10, 50, 10]),
        (
            {
                "input_ids": ids(2, 4),
                "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]),
                "labels": torch.tensor([[5, -100, -100, -100], [5, 6, -100, -100]]),
            },
            [4, 8, 10, 3],
        ),
        (
            {"input_ids": ids(1, 6), "cu_seq_lens_q": torch.tensor([0, 2, 5])},
            [5, 6, 13, 6],
        ),
        # a mask of pairs of tokens says nothing of padding
        ({"input_ids": ids(1, 3), "attention_mask": torch.ones(1, 1, 3, 3)}, [3, 3, 9, 3]),
        # two choices for each of three examples
        (
            {
                "input_ids": ids(3, 2, 4),
                "attention_mask": torch.tensor([1, 1, 1, 0]).expand(3, 2, 4),
                "labels": torch.tensor([0, 1, 1]),
            },
            [18, 24, 54, 3],
        ),
    ],
)
def test_tokens_places_squares_and_labels(batch: dict[str, Any], expected: list[int]) -> None:
    counts = token_counts(batch, "input_ids")
    assert counts is not None
    assert counts.tolist() == expected


def test_a_batch_without_tokens_is_not_counted() -> None:
    assert token_counts({"pixel_values": torch.ones(1, 3, 8, 8)}, "input_ids") is None
    assert token_counts({"pixel_values": torch.ones(1, 3, 8, 8)}, "pixel_values") is None
    assert token_counts({"input_values": torch.ones(2, 1600)}, "input_values") is None


def test_models_whose_operations_are_not_known_have_no_flops() -> None:
    model = tiny("bert")
    assert model_flops(model) is not None
    packed = torch.nn.Parameter(torch.ones(4, dtype=torch.uint8), requires_grad=False)
    model.cls.register_parameter("packed", packed)
    assert model_flops(model) is None
    for config in (SimpleNamespace(num_hidden_layers=2), {"num_hidden_layers": 2}, None):
        plain = torch.nn.Linear(2, 2)
        plain.config = config
        assert model_flops(plain) is None


def test_peaks_of_gpus_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, peak in (
        ("NVIDIA H100 80GB HBM3", 989.5e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Tesla T4", 65e12),
        ("Quadro K620", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA A40", 149.7e12),
        ("NVIDIA GH200 480GB", 989.5e12),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, _name=name: _name)
        assert peak_flops_of(torch.device("cuda", 0)) == peak
    assert peak_flops_of(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("strategy", "interval", "expected"),
    [("steps", 10, 7), ("steps", 40, 2), ("epoch", 10, 2), ("no", 10, 0), ("best", 10, 0)],
)
def test_what_is_planned(strategy: str, interval: int, expected: int) -> None:
    state = SimpleNamespace(global_step=35, max_steps=100, num_train_epochs=3, epoch=1.05)
    assert num_to_come(SimpleNamespace(state=state), strategy, interval) == expected


@pytest.mark.parametrize(
    "options", [{"peak_flops": 0}, {"peak_flops": math.inf}, {"num_warmup_steps": -1}]
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        tfo.ThroughputMonitor(**options)


@pytest.mark.invariant
def test_two_processes_count_the_tokens_of_both(
    tmp_path: Path, two_interpreters: TwoInterpreters
) -> None:
    out = tmp_path / "out.json"
    two_interpreters.run(Path(__file__), out)
    found = json.loads(out.read_text())
    for entry in found:  # two micro-batches of 4 rows of 12 places, on each of two processes
        assert entry["time/tokens_per_second"] * entry["time/step"] == pytest.approx(192)
        assert entry["padding_share"] == 0
        assert entry["memory/activations"] > 0
        assert entry["time/mfu"] > 0


if __name__ == "__main__":
    monitors = [tfo.ThroughputMonitor(1e12, num_warmup_steps=0), tfo.MemoryMonitor(every=1)]
    worker = trainer_with(Path(sys.argv[1]).parent / "run", monitors)
    worker.train()
    if worker.is_world_process_zero():
        Path(sys.argv[1]).write_text(json.dumps(logs_of(worker)))
