"""The roofline of the GPU's forms, without a GPU: counts, floors, and how measurements of a file are shown."""

import json
import math
from dataclasses import replace

import pytest

from benchmarks.gpu import floors, form_pictures, form_roofline, forms
from fastlstm.kernels.device import forms as device_forms
from fastlstm.kernels.device.persistent import CELLS, SINCE

H200 = floors.GPUS["H200"]
SHAPE = ("lstm", False, "float32", 256, 64)


def test_a_step_is_counted():
    one = device_forms.choice(*SHAPE, 100, H200.chip, "grid")
    told = floors.numbers(one, *SHAPE, 100, H200)
    # Gates, activations, h and c cross the bus; a block multiplies its rows of 256 words, in three products of tf32.
    assert told["arrays"] == 64 * 256 * 4 * (4 + 4 + 1 + 1)
    assert told["operand"] == one.plan.rows * one.plan.passes * 256 * 4
    assert told["operations"] == 2 * 64 * 256 * 1024
    assert told["weights"] == 4 * 1024 * 256
    assert told["barriers"] == 1
    assert one.plan.split
    operations = 64 * 256 * 1024 / (device_forms.TENSOR[90] / 6 * one.plan.blocks * device_forms.CLOCK)
    assert told["floor"] == pytest.approx(1e6 * (one.meeting + operations))
    assert told["bound"] == "barriers"
    unsplit = replace(one, plan=replace(one.plan, split=False))
    least = floors.floor(unsplit, *SHAPE, 100, H200)
    assert least.operations == pytest.approx(64 * 256 * 1024 / (128 * one.plan.blocks * device_forms.CLOCK))
    slow = floors.floor(one, *SHAPE, 100, replace(H200, memory=1e9))
    assert slow.bound == "memory"
    assert slow.seconds == pytest.approx(one.meeting + (told["arrays"] + told["weights"] / 100) / 1e9)
    # In 16 bits h is written once more; backward reads activations, c and the outputs' gradients and writes those of the gates.
    assert floors.arrays("lstm", False, "bfloat16", 1, 1) == 16 + 8 + 4 + 2 + 4
    assert floors.arrays("lstm", True, "bfloat16", 1, 1) == 8 + 4 + 4 + 8
    assert floors.arrays("gru", True, "float32", 1, 1) == 12 + 4 + 4 + 4 + 12 + 12
    assert floors.arrays("rnn", True, "float32", 1, 1) == 4 + 4 + 4


@pytest.mark.parametrize("gpu", ["H200", "A100", "RTX 3090"])
def test_what_is_expected_is_no_less_than_the_floor(gpu):
    on = floors.GPUS[gpu]
    for cell in CELLS:
        for dtype in SINCE:
            for hidden, batch in ((64, 1), (256, 64), (1024, 16)):
                for backward in (False, True):
                    for one in device_forms.estimates(cell, backward, dtype, hidden, batch, on.chip):
                        least = floors.floor(one, cell, backward, dtype, hidden, batch, 100, on)
                        assert 0 < least.seconds <= one.seconds(100) / 100, (cell, backward, one)


def test_devices_by_their_drivers_names():
    assert floors.gpu("NVIDIA H200", H200.chip) == H200
    assert floors.gpu("NVIDIA GeForce RTX 3090", H200.chip).memory == floors.GPUS["RTX 3090"].memory
    assert floors.gpu("NVIDIA A100-SXM4-80GB", H200.chip).memory == floors.GPUS["A100"].memory
    assert floors.gpu("something else", H200.chip).memory == math.inf


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Return an empty folder of results, which the roofline then reads."""
    monkeypatch.setattr(form_roofline, "RESULTS", tmp_path)
    return tmp_path


def measured(folder):
    """Write a file with one point in which the choice was wrong, and an older file; return the point's name."""
    shape = ("lstm", 256, 64, 100, "float32")
    point = form_roofline.estimated(*shape, H200)
    for form, time in (("general", 8.0), ("cluster", 3.0), ("grid", 2.0)):
        for one in point["forms"][form].values():
            one |= {"us per step": time, "share": one["floor"] / time}
    point["choices"]["forward"] |= {"fastest": "grid", "lost": 1.5}
    results = {
        "machine": {"device": {"device": "NVIDIA H200"}},
        "forms": {forms.name(*shape): point, "lstm H=64 B=1 T=100 float32": {"failed": "at once"}},
    }
    (folder / "gpu-nvidia-h200-2026-11-30-235959.json").write_text(json.dumps({"results": results | {"forms": {}}}))
    (folder / "gpu-nvidia-h200-2026-12-01-000000.json").write_text(json.dumps({"results": results}))
    return forms.name(*shape)


def test_without_measurements_the_table_says_that_all_are_estimates(results):
    content = form_roofline.collected(["H200", "RTX 3090"])
    head, *body = form_roofline.lines(content, ["lstm H=256 B=64 T=100 float32"])
    assert head == "**H200: estimates only, nothing was measured**; of each step, the form that is chosen in bold:"
    assert sum("RTX 3090: estimates only" in line for line in body) == 1
    assert not any("%" in line for line in body)
    small = content["RTX 3090"]["points"]["lstm H=64 B=1 T=100 float32"]
    assert set(small["forms"]) == {"general", "grid", "block"}


def test_measurements_of_the_device_are_shown_with_their_share(results):
    name = measured(results)
    content = form_roofline.collected(["H200", "RTX 3090"])
    lines = form_roofline.lines(content, [name])
    assert lines[0].startswith("**H200: measured (gpu-nvidia-h200-2026-12-01-000000.json)**"), "the newest file"
    (chosen,) = (line for line in lines if f"| {name} forward | **cluster** |" in line and "3.00" in line)
    floor = floors.floor(device_forms.choice(*SHAPE, 100, H200.chip, "cluster"), *SHAPE, 100, H200).seconds
    assert f"| 3.00 | {floor * 1e6 / 3:.0%} |" in chosen
    assert sum("%" in line for line in lines) == 6, "the other device was not measured"
    assert "estimated" in content["H200"]["points"]["lstm H=64 B=1 T=100 float32"]["forms"]["block"]["forward"], "failed there"


def test_a_chosen_form_without_a_time_leaves_its_cell_blank(results, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    name, kept = measured(results), []
    monkeypatch.setattr(form_pictures, "save", lambda figure, _: kept.append(figure))
    points = form_roofline.collected(["H200"])["H200"]["points"]
    form_pictures.draw_choices(points, "H200", results / "choices.png")
    del points[name]["forms"]["cluster"]
    points[name]["choices"]["forward"] = {"chosen": "cluster"}
    form_pictures.draw_choices(points, "H200", results / "choices.png")
    before, after = (sum(len(axis.texts) for axis in figure.axes) for figure in kept)
    assert before - after == sum(points[name]["choices"][way]["chosen"] == "cluster" for way in form_pictures.WAYS) > 0


def test_a_wrong_choice_is_framed(results, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    measured(results)
    texts, kept = [], []
    monkeypatch.setattr(form_pictures, "save", lambda figure, path: kept.append((figure, path)))
    points = form_roofline.collected(["H200"])["H200"]["points"]
    form_pictures.draw_choices(points, "H200", results / "choices.png")
    form_pictures.draw_times(points, "H200", results / "times.png")
    choices, times = (figure for figure, _ in kept)
    texts = [text.get_text() for axis in choices.axes for text in axis.texts]
    assert texts.count("cluster\n3.00\ngrid 1.5x") == 1
    assert sum("\n~" not in text for text in texts) == 2, "all but the one point's two ways are only expected"
    assert sum("x" in text.rpartition("\n")[2] for text in texts) == 1
    assert sum(not patch.get_fill() for axis in choices.axes for patch in axis.patches) == 1
    assert {"grid, expected", "grid, measured"} <= {text.get_text() for text in times.legends[0].get_texts()}
