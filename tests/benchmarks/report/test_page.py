"""The report has every claim with a value or a reason, loads nothing from outside, and fits a phone and a desktop."""

import json
import re
import shutil
import subprocess
from collections import Counter
from html import escape, unescape

import numpy as np
import pytest

import fastlstm
from benchmarks.learning import gates
from benchmarks.report import claims, pictures, readme, tables
from benchmarks.report.results import content
from tests.benchmarks.report.stored import ABOUT, TABLES, made, synthetic

STORED = tables.RESULTS
# Lists elements that are outside the page, and text that is outside its SVG, if the page is `width` wide.
MEASURE = """<!doctype html><body><iframe id=f width={width} height=800 srcdoc="{page}"></iframe><script>
document.getElementById("f").onload = (event) => {{
  const d = event.target.contentDocument, width = d.documentElement.clientWidth, bad = [];
  const name = (e) => e.tagName + " " + e.textContent.trim().slice(0, 60);
  d.querySelectorAll("details").forEach((e) => e.open = true);
  if (d.documentElement.scrollWidth > width) bad.push("the page scrolls sideways: " + d.documentElement.scrollWidth);
  for (const e of d.body.querySelectorAll("*")) {{
    if (e.closest("thead") && getComputedStyle(e.closest("thead")).position == "absolute") continue;
    const r = e.getBoundingClientRect(), svg = e.ownerSVGElement;
    if (!svg && (r.right > width + 1 || r.left < -1)) bad.push("outside the page: " + name(e));
    if (svg && e.tagName == "text" && svg.getAttribute("role") == "img") {{
      const s = svg.getBoundingClientRect();
      if (r.right > s.right + 1 || r.left < s.left - 1 || r.top < s.top - 1 || r.bottom > s.bottom + 1)
        bad.push("clipped in " + svg.getAttribute("aria-label") + ": " + name(e));
    }}
  }}
  const sizes = [...d.querySelectorAll("svg[role=img] text")].map((e) => e.getBoundingClientRect().height);
  document.body.textContent = "MEASURED " + JSON.stringify({{width, bad, svgs: d.querySelectorAll("svg[role=img]").length,
    least: Math.min(...sizes)}}) + " END";
}};
</script></body>"""


def test_nothing_of_synthetic_results_is_missing(results):
    results(synthetic())
    page, reader = made()
    cells = Counter(cell.strip() for row in reader.rows for cell in row)
    assert cells["17.25"] == 6  # a heat map's number for each cell and batch
    assert cells["0.43"] == 12
    assert cells["9.25"] == 2  # p99.9
    words = unescape(re.sub("<[^>]+>", "", page))
    for expected in (
        "A <fast> one",
        "To be <or> not",
        "OutOfMemory: <none> left",
        'A "quoted" <line>',
        "tokens remembered",
        "Some GPU. Of 2 checks 0 failed, 1 left something out.",
        "T=100 float32 inference (without the broken form grid)",
        "differ by 9.0% at most.",
        "share of the native layer's advantage",
    ):
        assert expected in words
    assert page.count("<svg role") == 9 + 1 + 3 + 2 * 3 + 5 + 1 + 2


def test_panels_with_other_series_have_legends_of_their_own(results):
    found = synthetic()
    results(found)
    assert made()[0].count("<ul class=legend>") == 9  # latency, roofline, two kinds of tokens, four of memory, generation
    cases = found["latency"]["steps"]
    cases["gru 32->64 B=1 T=1"] = {"torch": next(iter(cases.values()))["torch"]}
    results(found)
    assert made()[0].count("<ul class=legend>") == 10


def test_entries_of_another_machine_say_so(results):
    found = synthetic()
    elsewhere = {"machine": ABOUT["machine"] | {"processor": "Quite <another>"}, "versions": {"numpy": "2.5"}}
    spans = found["memory-span"]
    spans["copy"] = spans["copy"] | {"transformer": spans["copy"]["rnn"] | elsewhere}
    found["generation"]["gru"] |= elsewhere
    found["words-learning"]["gru"] |= elsewhere
    results(found)
    page, reader = made()
    assert "GRU: Quite &lt;another&gt; (znver9), 3 threads, avx2; numpy 2.5." in page  # what it writes
    assert "Transformer (copy): Quite &lt;another&gt; (znver9)" in page
    assert "words-learning.json: Quite &lt;another&gt;. Quiet." in page
    named = [row[0] for row in reader.rows if len(row) == 5 and row[1].startswith("Quite <another>")]
    assert named == ["generation.json, gru", "memory-span.json, copy: transformer", "words-learning.json, gru"]
    assert any("words-learning.json: Quite <another> (znver9)" in line for line in tables.learning())


def test_without_results_every_section_says_why(results):
    results({})
    page, _ = made()
    reasons = re.findall(r"not measured here: there is no benchmarks/results/([\w-]+).json", page)
    assert set(reasons) == {
        "article-speed",
        "grid",
        "latency",
        "roofline",
        "article-learning",
        "memory-span",
        "gate-activity",
        "generation",
        "repeat",
        "torch-layers",
    }
    assert "no machine with a GPU was at hand: there is no benchmarks/results/gpu-MACHINE-DATE.json" in page
    assert "✓" in page  # the parameters are counted, not stored


def test_the_stored_results_are_all_on_the_page():
    page, reader = made()
    cells = {cell.strip() for row in reader.rows for cell in row}
    for path in STORED.glob("*.json"):
        assert path.name in cells
    for p in json.loads((STORED / "grid.json").read_text())["results"]["main"].values():
        assert f"{p['inference']['torch']['speedup']:.2f}" in cells
    for run in json.loads((STORED / "article-learning.json").read_text())["results"].values():
        assert f"{run['best_loss']:.3f}" in cells
    assert len(page) < 1_500_000


def test_markdown_has_every_claim(results):
    results({})
    lines = [line for line in claims.markdown() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert {line.split("|")[1].strip() for line in lines} >= set(TABLES)


def test_the_stored_page_of_results_is_the_one_that_is_made():
    assert readme.PAGE.read_text(encoding="utf-8") == readme.page(), "python -m benchmarks.report.readme"


def test_the_readmes_numbers_are_those_of_the_results():
    text = readme.README.read_text(encoding="utf-8")
    assert readme.BEGIN in text
    assert text == readme.with_numbers(text), "python -m benchmarks.report.readme"
    rows = [line for line in readme.numbers().splitlines() if line.startswith("| ")]
    assert len(rows) - 2 == 6
    assert any(row.endswith("1.00 times as fast |") for row in rows), "what is no faster is among them"


def test_the_readme_is_short():
    assert readme.README.stat().st_size <= 8 * 1024


def test_the_summary_is_drawn_and_small(tmp_path):
    pytest.importorskip("matplotlib")
    drawn = tmp_path / "summary.png"
    pictures.draw_summary(tables.read("article-speed"), drawn)
    for path in (drawn, readme.PAGE.with_name("summary.png")):
        assert 10_000 < path.stat().st_size < 60 * 1024


def test_the_newest_file_of_a_gpu_is_read(results):
    found = synthetic()
    old = found["gpu-some-gpu-2026-12-01-000000"]
    new = old | {"machine": {"device": {"device": "A newer GPU", "cupy": "14.0"}}, "ratios": {"lstm": {"ratio": 12.5}}}
    results(found | {"gpu-a-newer-gpu-2026-12-02-000000": new})
    assert content("gpu")["results"] == new
    page, reader = made()
    assert "A newer GPU. Of 2 checks" in page
    assert ["gpu-some-gpu-2026-12-01-000000.json", "Some GPU", "", "–", "–"] in reader.rows
    assert ["gpu-a-newer-gpu-2026-12-02-000000.json", "A newer GPU", "cupy 14.0", "–", "–"] in reader.rows
    (ratio,) = (row.here for row in claims.ratios() if row.what == "LSTM: CPU time / GPU time")
    assert ratio.value == "12.5"
    assert ratio.note.endswith("A newer GPU"), "both times are of one machine"


def test_results_have_claims_and_every_learning_run(results):
    found = synthetic()
    results(found)
    made = readme.page()
    assert "| CPU: LSTM time / RNN time | 3 | 3 | 3, holds: the same | holds: the same |" in made
    rows = [line for line in made.splitlines() if line.startswith(("| char | ", "| word | "))]
    assert len(rows) == sum(len(found[name]) for name in ("article-learning", "words-learning"))
    assert any(row.startswith("| word | Transformer | float32 | 50 |") and row.endswith("| – |") for row in rows)


def test_gates_are_those_of_the_model():
    model = fastlstm.LanguageModel(9, hidden_size=5, num_layers=1, seed=3)
    ids = np.array([1, 4, 8, 0, 2, 2, 7])
    found = gates.gates(model, ids)
    np.testing.assert_allclose(found["logits"], model(ids[:, None])[0][:, 0], rtol=1e-5, atol=1e-5)
    assert {name: values.shape for name, values in found.items()} == dict.fromkeys(gates.GATES, (7, 5)) | {"logits": (7, 9)}


def test_gates_are_measured_over_a_held_out_line():
    text = "The quick brown fox jumps over the lazy dog and is not seen.\n" * 400
    found = gates.measure(text, epochs=1)
    assert found["line"] in text
    assert {len(row) for values in found["gates"].values() for row in values} == {len(found["line"])}
    assert all(0 <= value <= 1 for values in found["gates"].values() for row in values for value in row)
    with pytest.raises(ValueError, match="48 to 64 characters"):
        gates.line_of("too short")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", ["stored", "synthetic"])
def test_nothing_is_clipped_in_a_browser(width, kind, results, tmp_path, monkeypatch):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium here to look at the page with")
    results(synthetic())
    if kind == "stored":
        monkeypatch.setattr(tables, "RESULTS", STORED)
    page, _ = made()
    file = tmp_path / "measure.html"
    file.write_text(MEASURE.format(width=width, page=escape(page)), encoding="utf-8")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1400,900",
        "--virtual-time-budget=20000",
        "--dump-dom",
        file.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(unescape(re.search("MEASURED (.*) END", done.stdout, re.DOTALL)[1]))
    assert (found["width"], found["bad"]) == (width, [])
    assert found["svgs"] == page.count("<svg role")
    assert found["least"] > 7  # text that can be read
