"""Makes the parts of the report's page: tables, folded numbers, figures, and the page around them. It does not know the
results.

On a phone, a table that is too wide becomes a card for each row, with the column's name before each figure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

CARDS = 34  # a table with more characters in a row is too wide for a phone

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1d2125; --soft: #5a636d; --grid: #dde1e5; --panel: #f5f6f8;
  --s1: #0072b2; --s2: #c44e00; --s3: #007a5a; --s4: #a8467f; --s5: #6b6b6b; --s6: #8a6a00;
  --yes: #00614a; --no: #a33c00; --none: #5a636d; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --ink: #e4e7ea; --soft: #a3acb5; --grid: #343a41;
  --panel: #1d2126; --s1: #62b8f0; --s2: #ff9a4d; --s3: #35cfa2; --s4: #ec9fcb; --s5: #b9b9b9; --s6: #e5c558;
  --yes: #48d3aa; --no: #ffa266; --none: #a3acb5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1rem 4rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0 .5rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .5rem; padding-top: .8rem; border-top: 1px solid var(--grid); }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; }
p { max-width: 46rem; margin: .5rem 0; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 1rem 0; }
a { color: var(--s1); }
table { border-collapse: collapse; margin: .6rem 0; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--grid); }
th { font-weight: 600; }
td.number { white-space: nowrap; }
.yes, .no, .none, .part { font-weight: 600; } .yes, .no, .none { white-space: nowrap; }
.yes { color: var(--yes); } .no { color: var(--no); } .none, .part { color: var(--none); }
td small { display: block; color: var(--soft); font-size: .82rem; font-weight: 400; line-height: 1.35; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20.5rem), 1fr)); gap: 1rem 1.5rem; }
figure { margin: 1rem 0; }
.panels svg { display: block; width: 100%; height: auto; max-width: 33rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .4rem 0; padding: 0; list-style: none; font-size: .85rem; }
.legend svg { width: 2.2em; height: 1em; vertical-align: -.15em; margin-right: .35em; }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--s1); font-size: .9rem; }
pre { white-space: pre-wrap; background: var(--panel); padding: .7rem .9rem; border-radius: 4px; font-size: .85rem; }
code { font-size: .92em; }
.missing { border-left: 3px solid var(--none); background: var(--panel); padding: .6rem .9rem; border-radius: 0 4px 4px 0; }
.strip { font: .95rem/1.9 ui-monospace, "DejaVu Sans Mono", "Liberation Mono", monospace; margin: .2rem 0 .9rem;
  overflow-wrap: anywhere; }
.strip span { padding: .2em 0; white-space: pre-wrap; }
@media (max-width: 640px) {
  body { padding: .5rem .8rem 3rem; }
  table.cards, table.cards tbody, table.cards tr, table.cards td { display: block; width: 100%; }
  table.cards thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
  table.cards tr { padding: .5rem 0; border-bottom: 1px solid var(--grid); }
  table.cards td { border: 0; padding: .1rem 0; white-space: normal; }
  table.cards td:first-child { font-weight: 600; }
  table.cards td:empty, table.cards td.dash { display: none; }
  table.cards td:not([data-label=""])::before { content: attr(data-label) ": "; color: var(--soft); font-weight: 400; }
}
"""


class Html(str):
    """Text that is markup already; other text must be escaped."""


def text(value: object) -> Html:
    """Return a value as markup, escaped unless it is markup already. Of Markdown it understands **bold** and `code`."""
    if isinstance(value, Html):
        return value
    found = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(str(value)))
    return Html(re.sub(r"`(.+?)`", r"<code>\1</code>", found))


def paragraph(value: object, kind: str = "") -> Html:
    """Return a paragraph."""
    return Html(f"<p{f' class={kind}' if kind else ''}>{text(value)}</p>")


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """Return a table. Its roles tell screen readers that it is a table even if it is shown as cards."""
    body = [[text(cell) for cell in row] for row in rows]
    heads = [text(cell) for cell in head]
    labels = [re.sub("<[^>]+>", "", cell) for cell in heads]
    plain = [[re.sub("<[^>]+>", "", cell) for cell in row] for row in [heads, *body]]
    wide = sum(max((len(cell) for cell in column), default=0) + 2 for column in zip(*plain, strict=True)) > CARDS

    def cell(value: str, label: str) -> str:
        kind = " class=dash" if value == "–" else " class=number" if re.fullmatch(r"[\d.]{1,14}%?", value) else ""
        return f'<td role=cell{kind} data-label="{label}">{value}</td>'

    labels[0] = ""  # the title of a card needs no name
    made = ["".join(cell(value, label) for value, label in zip(row, labels, strict=True)) for row in body]
    shown = "".join(f"<tr role=row>{row}</tr>" for row in made)
    top = "".join(f"<th role=columnheader scope=col>{value}</th>" for value in heads)
    kind = " class=cards" if wide else ""
    return Html(f"<table role=table{kind}><thead><tr role=row>{top}</tr></thead><tbody>{shown}</tbody></table>")


def details(summary: str, content: str) -> Html:
    """Return content that is folded until the reader opens it."""
    return Html(f"<details><summary>{text(summary)}</summary>{content}</details>")


def figure(panels: Iterable[str], caption: object, numbers: str, legend: str = "") -> Html:
    """Return panels, side by side if there is room, with their legend and a table of the numbers that they show."""
    drawn = "".join(f"<div>{panel}</div>" for panel in panels)
    return Html(
        f"<figure>{legend}<div class=panels>{drawn}</div><figcaption>{text(caption)}</figcaption>"
        f"{details('The numbers as a table', numbers)}</figure>"
    )


def missing(reason: object) -> Html:
    """Return the text that stands in the place of something that was not measured."""
    return Html(f"<p class=missing>not measured here: {text(reason)}</p>")


def markdown(lines: Iterable[str]) -> Html:
    """Return Markdown of `benchmarks.report.tables` as markup: paragraphs, tables and fenced text. Pictures are left out."""
    found: list[str] = []
    for block in re.split(r"\n\n(?!\n)", "\n".join(lines)):
        part = block.strip("\n").split("\n")
        tabled = [line for line in part if line.startswith("|")]
        words = [line for line in part if line and not line.startswith(("|", "!["))]
        if words and words[0].startswith("```"):
            found.append(f"<pre>{escape(chr(10).join(words[1:-1]))}</pre>")
        elif words:
            found.append(paragraph(" ".join(words)))
        if tabled:
            head, _, *rows = ([cell.strip() for cell in line.strip().strip("|").split("|")] for line in tabled)
            found.append(table(head, rows))
    return Html("\n".join(found))


def page(title: str, introduction: str, sections: dict[str, str]) -> str:
    """Return the whole page. It loads nothing else."""
    names = {name: re.sub(r"\W+", "-", name.lower()).strip("-") for name in sections}
    links = "".join(f'<a href="#{anchor}">{text(name)}</a>' for name, anchor in names.items())
    body = "\n".join(f'<section id="{names[name]}"><h2>{text(name)}</h2>\n{made}</section>' for name, made in sections.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><header><h1>{text(title)}</h1>{introduction}<nav>{links}</nav></header>\n<main>{body}</main></body></html>\n"
    )
