"""Write report.html, one file that loads nothing, and the plot that it shows."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

from w2s_fast.files import write_bytes
from w2s_fast.report import PAGE, PLOT
from w2s_fast.report.figure import results_figure
from w2s_fast.report.model_rows import (
    NOT_REPORTED,
    ceilings,
    class_rows,
    format_interval,
    format_number,
    model_rows,
    notes,
)

_STYLE = """
:root { color-scheme: light dark; --bg:#f6f7f9; --panel:#fff; --ink:#1d2129; --soft:#5c6573;
  --rule:#e4e7ec; --lift:0%; }
@media (prefers-color-scheme: dark) { :root { --bg:#12151a; --panel:#1a1e25; --ink:#e8ebf0;
  --soft:#9aa4b2; --rule:#2b313b; --lift:38%; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--bg); color:var(--ink);
  font:16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width:1040px; margin:0 auto; padding:48px 24px 64px; }
h1 { font-size:34px; line-height:1.15; margin:0 0 12px; letter-spacing:-.02em; }
h2 { font-size:18px; margin:0 0 6px; }
.kicker { margin:0 0 4px; color:var(--soft); font-size:13px; letter-spacing:.08em;
  text-transform:uppercase; }
.lead { font-size:19px; max-width:46em; margin:0 0 28px; color:var(--soft); }
.lead b { color:var(--ink); }
.panel { background:var(--panel); border:1px solid var(--rule); border-radius:14px;
  padding:22px 24px; margin:18px 0; }
.panel p { margin:0 0 14px; color:var(--soft); font-size:14.5px; max-width:60em; }
.cards { display:grid; gap:12px; grid-template-columns:repeat(auto-fit, minmax(150px, 1fr)); }
.card { background:var(--panel); border:1px solid var(--rule); border-radius:14px;
  border-top:4px solid color-mix(in srgb, var(--c), white var(--lift)); padding:14px 16px; }
.card p { margin:0; font-size:13.5px; color:var(--soft); overflow-wrap:anywhere; }
.card b { display:block; font-size:28px; letter-spacing:-.02em; font-variant-numeric:tabular-nums; }
.card span { font-size:13.5px; color:var(--soft); }
.note { margin:14px 0 0; padding:10px 14px; border-left:4px solid #d9a21b; border-radius:6px;
  background:color-mix(in srgb, #d9a21b 12%, var(--panel)); font-size:14.5px; }
.scroll { overflow-x:auto; }
.figure { display:block; width:100%; min-width:720px; background:#fff; border-radius:8px; }
table { border-collapse:collapse; width:100%; font-size:14px; font-variant-numeric:tabular-nums; }
th { text-align:right; color:var(--soft); font-weight:500; font-size:12.5px; }
td { text-align:right; }
th, td { padding:7px 10px; border-bottom:1px solid var(--rule); white-space:nowrap; }
th:first-child, td:first-child { text-align:left; padding-left:0; }
tr:last-child td { border-bottom:0; }
dl { display:grid; grid-template-columns:max-content 1fr; gap:4px 18px; margin:8px 0 14px;
  font-size:14px; }
dt { color:var(--soft); }
dd { margin:0; overflow-wrap:anywhere; }
details { border-top:1px solid var(--rule); padding:10px 0 0; margin-top:10px; }
summary { cursor:pointer; font-size:14.5px; }
pre { overflow-x:auto; font-size:12.5px; line-height:1.45; }
footer { color:var(--soft); font-size:13px; margin-top:28px; }
"""

_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<header>
<p class="kicker">weak-to-strong generalization</p>
<h1>$title</h1>
<p class="lead">$lead</p>
</header>
<section class="cards">$cards</section>
$notes
<section class="panel"><h2>Accuracy and performance gap recovered</h2>
<p>Left: accuracy on the same test items. Dots are seeds, bars their means; the shaded band is the
gap between the weak supervisor and the ceiling. Right: the share of that gap that a student
recovers, 0 at the weak supervisor and 1 at the ceiling. Lines are 95&nbsp;% bootstrap intervals
over seeds and test items. PGR is omitted when the gap is below two standard errors.</p>
<div class="scroll"><img class="figure" alt="Accuracy of every model and PGR of every student"
src="data:image/svg+xml;base64,$figure"></div></section>
<section class="panel"><h2>Every run</h2><div class="scroll">$runs</div></section>
<section class="panel"><h2>Means over seeds</h2>
<p>Agreement is the share of test items where student and weak supervisor predict the same class:
of all items, of those the supervisor gets right, and of those it gets wrong. A student that
generalizes disagrees with the supervisor where the supervisor is wrong.</p>
<div class="scroll">$means</div></section>
<section class="panel"><h2>Provenance</h2>$provenance
<details><summary>Classes and rows</summary><div class="scroll">$classes</div></details>
<details><summary>Configuration</summary><pre>$config</pre></details>
<details><summary>Stages and digests</summary><div class="scroll">$stages</div></details>
</section>
<footer>w2s_fast $version · $utc</footer>
</main>
</body>
</html>
""")


def write_report(out: Path, results: Mapping[str, Any]) -> None:
    """Write plot.png, plot.svg and report.html into ``out``, each atomically.

    Args:
        out: An existing folder.
        results: The contents of results.json.
    """
    svg = results_figure(results, "svg")
    write_bytes(out / f"{PLOT}.png", results_figure(results, "png"))
    write_bytes(out / f"{PLOT}.svg", svg)
    write_bytes(out / PAGE, html_page(results, svg).encode())


def html_page(results: Mapping[str, Any], figure: bytes) -> str:
    """Return the page as HTML.

    Args:
        results: The contents of results.json.
        figure: The results figure as SVG.
    """
    facts = results["provenance"]
    return _PAGE.substitute(
        title=_escape(f"Task {facts['config']['task']['name']}"),
        style=_STYLE,
        lead=_lead(results),
        cards="".join(_cards(results)),
        notes="".join(f'<p class="note">{_escape(note)}</p>' for note in notes(results)),
        figure=base64.b64encode(figure).decode(),
        runs=_runs_table(results),
        means=_means_table(results),
        provenance=_provenance(facts),
        classes=_html_table(["class", "weak", "transfer", "test"], class_rows(results)),
        config=_escape(json.dumps(facts["config"], indent=2)),
        stages=_stages_table(facts),
        version=_escape(facts["versions"]["w2s_fast"]),
        utc=_escape(facts["utc"]),
    )


def _escape(value: Any) -> str:
    return html.escape(str(value))


def _lead(results: Mapping[str, Any]) -> str:
    """Return one sentence about the student with the largest PGR."""
    reported = [s for s in results["summary"] if s["pgr_mean"] is not None]
    if not reported:
        return "The ceiling is not clearly above the weak supervisor, so no PGR is reported."
    best = max(reported, key=lambda s: s["pgr_mean"])
    verb = "recovered" if best["pgr_mean"] >= 0 else "lost"
    return (
        f"Trained on labels of a weak supervisor of accuracy {format_number(best['weak'])}, the "
        f"student with <b>{_escape(best['name'])}</b> reached {format_number(best['student'])} and "
        f"{verb} <b>{abs(best['pgr_mean']):.0%}</b> of the gap to the ceiling of "
        f"{format_number(best['ceiling'])} "
        f"(95&nbsp;% interval {best['pgr_low']:.0%} to {best['pgr_high']:.0%})."
    )


def _cards(results: Mapping[str, Any]) -> Iterable[str]:
    for row in model_rows(results):
        caption = "accuracy"
        if row.student:
            caption = f"PGR {NOT_REPORTED}" if row.pgr is None else f"PGR {row.pgr[0]:.2f}"
        yield (
            f'<div class="card" style="--c:{row.color}"><p>{_escape(row.name)}</p>'
            f"<b>{format_number(row.mean)}</b><span>{caption}</span></div>"
        )


def _html_table(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    cells = "".join(f"<th>{_escape(h)}</th>" for h in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{_escape(c)}</td>" for c in line) + "</tr>" for line in body
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table>"


def _runs_table(results: Mapping[str, Any]) -> str:
    models = ("weak", "student", "ceiling")
    head = ["method", "seed", *models, "PGR", "interval over items", "gap ± se"]
    body = [
        [
            r["name"],
            str(r["seed"]),
            *(format_number(r[model]) for model in models),
            NOT_REPORTED if r["pgr"] is None else f"{r['pgr']:.2f}",
            format_interval(r),
            f"{format_number(r['gap'])} ± {format_number(r['gap_se'])}",
        ]
        for r in results["runs"]
    ]
    return _html_table(head, body)


def _means_table(results: Mapping[str, Any]) -> str:
    parts = ("all", "weak_right", "weak_wrong")
    head = ["model", "accuracy", "balanced", "F1", "AUROC",
            "agreement, all", "supervisor right", "supervisor wrong"]  # fmt: skip
    dashes = ["–"] * len(parts)
    body = [["weak supervisor", *_scores(results["summary"][0], "weak"), *dashes]]
    for s in results["summary"]:
        agreement = [format_number(s["agreement"][part]) for part in parts]
        body.append([f"student · {s['name']}", *_scores(s, "student"), *agreement])
    for title, row in ceilings(results).items():
        body.append([title, *_scores(row, "ceiling"), *dashes])
    return _html_table(head, body)


def _scores(row: Mapping[str, Any], model: str) -> list[str]:
    names = (model, *(f"{model}_{score}" for score in ("balanced", "f1", "auroc")))
    return [format_number(row[name]) for name in names]


def _provenance(facts: Mapping[str, Any]) -> str:
    git, machine = facts["git"], facts["machine"]
    commit = "not a git checkout"
    if git:
        commit = git["commit"][:12] + (" with local changes" if git["dirty"] else "")
    items = {
        "machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['cuda'] or 'no CUDA'}",
        "system": machine["system"],
        "kernels": ", ".join(f"{k} {v}" for k, v in facts["backends"].items() if v),
        "commit": commit,
        "versions": ", ".join(f"{k} {v}" for k, v in facts["versions"].items() if v),
    }
    lines = "".join(f"<dt>{_escape(k)}</dt><dd>{_escape(v)}</dd>" for k, v in items.items())
    return f"<dl>{lines}</dl>"


def _stages_table(facts: Mapping[str, Any]) -> str:
    body = [
        [name, s["folder"], s["digest"][:16], format_number(s["seconds"], 1),
         "yes" if s["reused"] else ""]
        for name, s in facts["stages"].items()
    ]  # fmt: skip
    return _html_table(["stage", "folder", "digest", "seconds", "reused"], body)
