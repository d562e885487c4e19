import dataclasses
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from hf_tfopt.pictures.sections import SECTIONS, pictures, section_panels, section_png
from hf_tfopt.run.folder import Run
from tests.run.finished import HOSTILE
from tests.run.histories import attention_of, full_history

NAMES = [section.name for section in SECTIONS]
HISTORY = full_history(last=100, every=5)
RUN = Run("run", {}, {}, HISTORY, attention=[attention_of("It is here .", 2, 3)])


def labels(section, *runs):
    """The titles of the pictures of a section."""
    return [
        ElementTree.fromstring(svg).attrib["aria-label"]
        for group in pictures(section, runs)
        for svg in group.svgs
    ]


def section_of(name):
    return SECTIONS[NAMES.index(name)]


def test_a_full_history_fills_every_section_with_what_it_should_show():
    shown = {section.name: labels(section, RUN) for section in SECTIONS}
    assert {name: len(titles) for name, titles in shown.items()} == {
        "curves": 6,
        "gradients": 9,
        "activations": 3,
        "attention": 5 + 3,
        "machine": 6,
    }
    every = " | ".join(title for titles in shown.values() for title in titles)
    for words in (
        *("Loss: training", "Perplexity", "F1 on held-out", "Learning rate of each group"),
        *("Gradient norm of each block", "Update / weight", "noise scale", "by role"),
        *("Largest activation", "Kurtosis", "Entropy of each head, step 100", "Every head"),
        *("Seconds of a step", "Tokens a second", "Memory by part", "padding", "utilisation"),
    ):
        assert words in every


def test_a_section_without_data_is_left_out():
    bare = Run("run", {}, {}, [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}])
    assert [bool(section_panels(s, [bare])) for s in SECTIONS] == [True] + [False] * 4
    assert labels(section_of("curves"), bare) == ["Loss: training (line), held out (dots)"]
    empty = dataclasses.replace(bare, history=())
    assert not any(section_panels(section, [empty]) for section in SECTIONS)
    assert section_png(section_of("gradients"), bare) == b""


def test_groups_with_one_rate_are_one_line_and_one_rate_is_no_picture_of_groups():
    svg = pictures(section_of("curves"), [RUN])[0].svgs[4]
    assert "Learning rate of each group" in svg
    assert ">encoder.1<" in svg and "encoder.1.matrices" not in svg
    alike = [
        {k: v for k, v in e.items() if not k.startswith("lr/")} | {"lr/a": 1.0, "lr/b": 1.0}
        for e in HISTORY
    ]
    assert "Learning rate" in labels(section_of("curves"), dataclasses.replace(RUN, history=alike))


def test_a_number_that_is_not_finite_is_a_hole_with_a_mark():
    history = [{"step": n, "loss": 4.0 - n / 20} for n in range(1, 21)]
    whole = pictures(section_of("curves"), [Run("run", {}, {}, history)])[0].svgs[0]
    history[9]["loss"] = None
    torn = pictures(section_of("curves"), [Run("run", {}, {}, history)])[0].svgs[0]
    assert 'id="gaps"' in torn and 'id="gaps"' not in whole

    def subpaths(svg):
        curve = re.findall(
            r'<path d="([^"]*)"[^>]*stroke: var\(--curve-0\); stroke-width: 1.6', svg
        )
        return curve[0].count("M ")

    assert (subpaths(whole), subpaths(torn)) == (1, 2)


@pytest.mark.parametrize("value", [math.nan, None])
def test_a_run_of_nothing_finite_has_no_pictures(value):
    history = [{"step": n, "loss": value, "grad_norm": value} for n in (1, 2)]
    assert not section_panels(section_of("curves"), [Run("run", {}, {}, history)])


def test_events_tell_what_they_were_where_the_pointer_rests():
    svg = pictures(section_of("curves"), [RUN])[0].svgs[0]
    titles = [e.text for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("title")]
    assert "step 30, skipped: loss is nan: the step was left out" in titles
    assert len(titles) == 3


def test_several_runs_lie_over_each_other_and_maps_side_by_side():
    runs = [dataclasses.replace(RUN, name=name) for name in "abc"]
    curves = pictures(section_of("curves"), runs)[0].svgs[0]
    assert all(f"var(--curve-{n})" in curves for n in range(3))
    titles = labels(section_of("gradients"), *runs)
    assert [t for t in titles if t.startswith("Gradient norm of each")] == [
        "Gradient norm of each block: a",
        "Gradient norm of each block: b",
    ]
    assert "Peak memory, MiB" in labels(section_of("machine"), *runs)


def test_nothing_of_a_run_is_markup_or_a_formula():
    text = HOSTILE.replace("\n", " ") + r" $\frac{ $"
    blocks = [{"step": 1, f"grad_norm/{text}": 1.0, f"lr/{text}": 1.0, "lr/b": 0.5, "loss": 1.0}]
    blocks[0]["events"] = [{"step": 1, "kind": text, "text": text}]
    run = Run(text, {}, {}, blocks, attention=[attention_of(f"{text} 漢字 🙂", 1, 1)])
    for section in SECTIONS:
        for group in pictures(section, [run, run]) + pictures(section, [run]):
            for svg in group.svgs:
                assert "<script" not in svg
                ElementTree.fromstring(svg)
        section_png(section, run)


def test_no_two_pictures_of_a_page_share_an_id():
    svgs = [svg for s in SECTIONS for group in pictures(s, [RUN]) for svg in group.svgs]
    ids = [i for svg in svgs for i in re.findall(r' id="([^"]+)"', svg) if i != "gaps"]
    assert ids and len(ids) == len(set(ids))
    assert not re.search(r"font-family: (?!inherit)", "".join(svgs))
    assert "#24292f" not in "".join(svgs)  # ink is the page's, light or dark
