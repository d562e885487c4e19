import subprocess
import sys

import pytest

from hf_tfopt.cli import main
from hf_tfopt.presets import PRESETS
from hf_tfopt.recipe.keys import Recipe
from hf_tfopt.recipe.typed_values import kinds
from tests.run.finished import write_finished_run


def test_list_shows_every_table_with_a_summary_of_each_entry(capsys):
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert len(headings) >= 7
    entries = [line.split(maxsplit=1) for line in lines if line.startswith("  ")]
    assert all(len(entry) == 2 for entry in entries), "an entry without a summary"
    names = {name for name, _ in entries}
    assert {*PRESETS, *kinds(Recipe), "muon", "adamw"} <= names


def test_list_of_one_kind_shows_that_kind_alone(capsys):
    main(["list", "presets"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "presets:",
        *PRESETS,
    ]


def test_explain_takes_flags_without_a_recipe(capsys):
    main(["explain", "--weight_decay", "0.125"])
    assert " 0.125 " in capsys.readouterr().out


def test_explain_shows_every_group_of_a_recipe(capsys):
    main(["explain", "bert-mini", "--weight_decay", "0.1", "--learning_rate", "0.02"])
    title, headings, *rows = capsys.readouterr().out.splitlines()
    assert title == "BertForMaskedLM: 5,364,480 parameters, optimizer muon"
    assert headings.split()[:6] == ["group", "tensors", "parameters", "share", "lr", "decay"]
    cells = {row.split()[0]: row.split()[1:6] for row in rows}
    assert cells["matrices"][3:] == ["0.02", "0.1"]
    assert cells["vectors"][4] == "0"
    numbers = [int(cell[1].replace(",", "")) for cell in cells.values()]
    assert sum(numbers) == 5_364_480
    assert rows[0].split()[6] == "bert.encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["list", "preset"], "did you mean 'presets'?"),
        (["explain", "bert-mni"], "did you mean 'bert-mini'?"),
        (["explain", "bert-mini", "--learning_rte", "1"], "did you mean 'learning_rate'?"),
        (["report", "nowhere"], "nowhere holds no finished run"),
        (["card", "nowhere"], "nowhere holds no finished run"),
        (["lab", "optimisers"], "did you mean 'optimizers'?"),
        (["lab", "optimizers", "adamw", "lam"], "did you mean 'lamb'?"),
        (["lab", "lr-range", "--lowest", "0"], "lowest: got 0.0, must be above 0"),
    ],
)
def test_a_mistake_ends_in_one_line_and_code_2(words, told, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_report_and_card_are_made_again_from_the_folder_alone(tmp_path, capsys):
    run = write_finished_run(tmp_path / "run")
    main(["report", str(run)])
    main(["card", str(run)])
    assert capsys.readouterr().out.split() == [str(run / "report.html"), str(run / "README.md")]
    main(["report", str(run), str(run), "--output", str(tmp_path / "both.html")])
    assert (tmp_path / "both.html").read_text().count("run (2)") > 0


@pytest.mark.parametrize("command", ["report", "card"])
def test_a_file_that_cannot_be_written_is_named(command, tmp_path, capsys):
    run = write_finished_run(tmp_path / "run")
    file = run / {"report": "report.html", "card": "README.md"}[command]
    file.mkdir()
    with pytest.raises(SystemExit) as end:
        main([command, str(run)])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"hf-tfopt: {file}: cannot be written: ") and error.count("\n") == 1


def test_help_is_quick_because_it_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from hf_tfopt.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'transformers', 'datasets', 'matplotlib'} & {*sys.modules})\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "report" in out.stdout and out.stdout.endswith("set()\n")


@pytest.mark.parametrize("words", [["lab"], ["lab", "optimizers", "adamw", "--help"]])
def test_lab_tells_how_it_is_used(words, capsys):
    main(words)
    told = capsys.readouterr().out
    assert all(flag in told for flag in ("--rates", "--spacing", "--lowest", "--highest"))
    assert "hf-tfopt lab schedules linear cosine" in told


def test_a_mistake_of_the_lab_is_answered_before_torch_is_imported():
    code = (
        "import sys\n"
        "from hf_tfopt.cli import main\n"
        "try: main(['lab', 'optimizers', 'adamw', 'lam'])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'transformers', 'datasets'} & {*sys.modules})\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "did you mean 'lamb'?" in out.stderr and out.stdout == "set()\n"
