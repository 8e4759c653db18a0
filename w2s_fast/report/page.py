"""Write report.html, one file that loads nothing, and the plot that it shows."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from w2s_fast.files import write_bytes
from w2s_fast.report import DECEPTION_PLOT, PAGE, PLOT
from w2s_fast.report.deception_figure import deception_figure
from w2s_fast.report.deception_rows import (
    AREA_HEADS,
    DECEPTION_HEADS,
    area_rows,
    deception_lines,
    deception_rows,
)
from w2s_fast.report.diagnostic_rows import (
    MISFIT_HEADS,
    WEAK_LABEL_HEADS,
    diagnostic_lines,
    misfit_rows,
    weak_label_rows,
)
from w2s_fast.report.figure import results_figure
from w2s_fast.report.label_rows import label_lines
from w2s_fast.report.model_rows import (
    NOT_REPORTED,
    ceilings,
    class_rows,
    difference_cells,
    format_interval,
    format_number,
    further_scores,
    interval_note,
    level_text,
    notes,
    pgr_ends,
    weak_label_line,
)
from w2s_fast.report.names import name_parts, printable
from w2s_fast.report.supervisor_rows import SUPERVISOR_HEADS, supervisor_lines, supervisor_rows

_STYLE = """
:root { color-scheme: light dark; --bg:#f6f7f9; --panel:#fff; --ink:#1d2129; --soft:#5c6573;
  --rule:#e4e7ec; }
@media (prefers-color-scheme: dark) { :root { --bg:#12151a; --panel:#1a1e25; --ink:#e8ebf0;
  --soft:#9aa4b2; --rule:#2b313b; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--bg); color:var(--ink);
  font:16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width:1040px; margin:0 auto; padding:48px 24px 64px; }
h1 { font-size:34px; line-height:1.15; margin:0 0 12px; letter-spacing:-.02em;
  overflow-wrap:anywhere; }
h2 { font-size:18px; margin:0 0 6px; }
.kicker { margin:0 0 4px; color:var(--soft); font-size:13px; letter-spacing:.08em;
  text-transform:uppercase; }
.lead { font-size:19px; max-width:46em; margin:0 0 28px; color:var(--soft);
  overflow-wrap:anywhere; }
.lead b { color:var(--ink); }
.panel { background:var(--panel); border:1px solid var(--rule); border-radius:14px;
  padding:22px 24px; margin:18px 0; }
.panel p { margin:0 0 14px; color:var(--soft); font-size:14.5px; max-width:60em; }
.panel p:last-child { margin:14px 0 0; }
.note { margin:14px 0 0; padding:10px 14px; border-left:4px solid #d9a21b; border-radius:6px;
  background:color-mix(in srgb, #d9a21b 12%, var(--panel)); font-size:14.5px;
  overflow-wrap:anywhere; }
.scroll { overflow-x:auto; }
.figure { display:block; width:100%; height:auto; background:#fff; border-radius:8px; }
table { border-collapse:separate; border-spacing:0; width:100%; font-size:14px;
  font-variant-numeric:tabular-nums; }
thead th { text-align:right; vertical-align:bottom; color:var(--soft); font-weight:500;
  font-size:12.5px; }
td { text-align:right; }
th, td { padding:7px 10px; border-bottom:1px solid var(--rule); }
td { white-space:nowrap; }
th:first-child { text-align:left; padding-left:0; min-width:min(15em, 36vw);
  max-width:min(26em, 42vw); overflow-wrap:anywhere; position:sticky; left:0;
  background:var(--panel); }
tbody th { color:var(--ink); font-weight:400; font-size:14px; }
tbody tr:last-child > * { border-bottom:0; }
dl { display:grid; grid-template-columns:max-content minmax(0, 1fr); gap:4px 18px;
  margin:8px 0 14px; font-size:14px; }
dt { color:var(--soft); }
dd { margin:0; overflow-wrap:anywhere; }
details { border-top:1px solid var(--rule); padding:10px 0 0; margin-top:10px; }
summary { cursor:pointer; font-size:14.5px; }
pre { overflow-x:auto; font-size:12.5px; line-height:1.45; }
@media (max-width:600px) { main { padding:28px 14px 40px; } .panel { padding:16px 14px; }
  h1 { font-size:28px; } .lead { font-size:17px; }
  thead th { white-space:nowrap; } }
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
<h1>Task $task</h1>
<p class="lead">$lead</p>
</header>
<section class="panel"><h2>Accuracy and performance gap recovered</h2>
<picture><source media="(max-width:600px)" srcset="data:image/svg+xml;base64,$narrow">
<img class="figure" src="data:image/svg+xml;base64,$figure"
alt="Accuracy of every model and PGR of every student; the tables have the numbers"></picture>
<p>Accuracy is on the same test items. Dots are seeds, bars their means; a shaded band is the gap
from the weak supervisor up to the ceiling. PGR is the share of that gap that a student recovers,
0 at the weak supervisor and 1 at the ceiling. $intervals
PGR is omitted when the gap could be noise.</p></section>
$notes
$differences
<section class="panel"><h2>Means over seeds</h2>
<p>Agreement is the share of test items where student and weak supervisor predict the same class:
of all items, of those the supervisor gets right, and of those it gets wrong. A student that
generalizes disagrees with the supervisor where the supervisor is wrong.</p>
$means<p>$weak_labels.</p></section>
$supervisors
$deception
$diagnostics
<section class="panel"><h2>Every run</h2>$runs</section>
<section class="panel"><h2>Provenance</h2>$provenance
<details><summary>Classes and rows</summary>$classes</details>
<details><summary>Configuration</summary><pre tabindex="0">$config</pre></details>
<details><summary>Stages and digests</summary>$stages</details>
</section>
<footer>w2s_fast $version · $utc</footer>
</main>
</body>
</html>
""")


def write_report(out: Path, results: Mapping[str, Any]) -> None:
    """Write plot.png, plot.svg and report.html into ``out``, each atomically.

    Runs with a conflict have deception.png and deception.svg too.

    Args:
        out: An existing folder.
        results: The contents of results.json.
    """
    svg = results_figure(results, "svg")
    write_bytes(out / f"{PLOT}.png", results_figure(results, "png"))
    write_bytes(out / f"{PLOT}.svg", svg)
    if results.get("deception"):
        for kind in ("png", "svg"):
            write_bytes(out / f"{DECEPTION_PLOT}.{kind}", deception_figure(results, kind))
    narrow = results_figure(results, "svg", narrow=True)
    write_bytes(out / PAGE, html_page(results, svg, narrow).encode())


def html_page(results: Mapping[str, Any], figure: bytes, narrow: bytes) -> str:
    """Return the page as HTML.

    Args:
        results: The contents of results.json.
        figure: The results figure as SVG.
        narrow: The results figure as SVG for small screens.
    """
    facts = results["provenance"]
    return _PAGE.substitute(
        title=_escape(f"Task {facts['config']['task']['name']}"),
        task=_name(facts["config"]["task"]["name"]),
        style=_STYLE,
        lead=_lead(results),
        intervals=_escape(interval_note(results)),
        differences=_differences_panel(results),
        notes="".join(f'<p class="note">{_escape(note)}</p>' for note in notes(results)),
        figure=base64.b64encode(figure).decode(),
        narrow=base64.b64encode(narrow).decode(),
        runs=_runs_table(results),
        means=_means_table(results),
        weak_labels=_escape(weak_label_line(results).capitalize()),
        supervisors=_supervisors_panel(results) + _labels_panel(results),
        deception=_deception_panel(results),
        diagnostics=_diagnostics_panel(results),
        provenance=_provenance(facts),
        classes=_html_table(
            "Classes and rows", ["class", "weak", "transfer", "test"], class_rows(results)
        ),
        config=html.escape(json.dumps(facts["config"], indent=2)),
        stages=_stages_table(facts),
        version=_escape(facts["versions"]["w2s_fast"]),
        utc=_escape(facts["utc"]),
    )


def _escape(value: Any) -> str:
    return html.escape(printable(str(value)))


def _name(text: str) -> str:
    """Return a name as HTML that breaks after separators and does not reorder what is around it."""
    parts = (html.escape(part) for part in name_parts(printable(text)))
    return f"<bdi dir='ltr'>{'<wbr>'.join(parts)}</bdi>"


def _lead(results: Mapping[str, Any]) -> str:
    """Return one sentence about the student with the largest PGR."""
    reported = [s for s in results["summary"] if s["pgr_mean"] is not None]
    if not reported:
        return "The ceiling is not clearly above the weak supervisor, so no PGR is reported."
    best = max(reported, key=lambda s: s["pgr_mean"])
    verb = "recovered" if best["pgr_mean"] >= 0 else "lost"
    return (
        f"Trained on labels of a weak supervisor of accuracy {format_number(best['weak'])}, the "
        f"student with <b>{_name(best['name'])}</b> reached {format_number(best['student'])} and "
        f"{verb} <b>{abs(best['pgr_mean']):.0%}</b> of the gap to the ceiling of "
        f"{format_number(best['ceiling'])}{_best_interval(best)}."
    )


def _best_interval(row: Mapping[str, Any]) -> str:
    ends = pgr_ends(row)
    if ends is None or math.isinf(ends[0]):
        return ""
    return f" ({level_text()} interval {ends[0]:.0%} to {ends[1]:.0%})"


def _html_table(name: str, head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a table, named for screen readers, in a box that scrolls sideways."""
    cells = "".join(f'<th scope="col">{_escape(h)}</th>' for h in head)
    lines = "".join(
        f'<tr><th scope="row">{_name(first)}</th>'
        + "".join(f"<td>{_escape(c)}</td>" for c in rest)
        + "</tr>"
        for first, *rest in body
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{name}">'
        f"<table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _differences_panel(results: Mapping[str, Any]) -> str:
    """Return the panel of paired differences; empty for a single student."""
    if not results.get("differences"):
        return ""
    title = "Differences between methods"
    head = ["method", "difference", "interval", "p", "p, Holm"]
    body = [[row["name"], *difference_cells(row)] for row in results["differences"]]
    baseline = _name(results["differences"][0]["baseline"])
    return (
        f'<section class="panel"><h2>{title}</h2>'
        f"<p>Accuracy of a student minus that of <b>{baseline}</b>, paired: both learned the same "
        "weak labels from the same weights. p is two-sided; Holm corrects it for the number of "
        f"methods.</p>{_html_table(title, head, body)}</section>"
    )


def _diagnostics_panel(results: Mapping[str, Any]) -> str:
    """Return the panel of diagnostics; empty for results of 0.2.0."""
    misfit, weak_labels = misfit_rows(results), weak_label_rows(results)
    if not misfit:
        return ""
    lines = "".join(f"<p>{_escape(line)}.</p>" for line in diagnostic_lines(results))
    table = _html_table("Weak labels", WEAK_LABEL_HEADS, weak_labels) if weak_labels else ""
    return (
        '<section class="panel"><h2>Diagnostics without true labels</h2>'
        "<p>Misfit is the distance between the predictions of student and weak supervisor on the "
        "test items. In theory, for a convex class that contains the truth, the gain in Brier "
        "score is at least the squared misfit, and the gain in NLL at least KL(student ‖ weak). "
        "The measured gains use true labels of the test items.</p>"
        f"{_html_table('Misfit', MISFIT_HEADS, misfit)}{lines}{table}</section>"
    )


def _deception_panel(results: Mapping[str, Any]) -> str:
    """Return the panel of students under a conflict; empty for results without any."""
    if not results.get("deception"):
        return ""
    figure = base64.b64encode(deception_figure(results, "svg")).decode()
    lines = "".join(f"<p>{_escape(line)}.</p>" for line in deception_lines(results))
    return (
        '<section class="panel"><h2>Students under a conflict</h2>'
        f'<img class="figure" src="data:image/svg+xml;base64,{figure}" '
        'alt="Share of the conflict tax by what weak model and ceiling know; the table below has '
        'the numbers">'
        "<p>Widths are the shares of test items that the weak supervisor knows, or does not; "
        "heights those of the ceiling. The darker an area, the larger the part of its items that "
        "the conflict costs; the deception score is about the outlined one.</p>"
        f"{lines}{_html_table('Deception', DECEPTION_HEADS, deception_rows(results))}"
        f"{_html_table('Areas of knowledge', AREA_HEADS, area_rows(results))}</section>"
    )


def _supervisors_panel(results: Mapping[str, Any]) -> str:
    """Return the panel of many supervisors; empty for results of one weak model."""
    rows = supervisor_rows(results)
    if not rows:
        return ""
    lines = "".join(f"<p>{_escape(line)}.</p>" for line in supervisor_lines(results))
    return (
        '<section class="panel"><h2>Supervisors</h2>'
        "<p>Their votes are combined by a label model, whose posterior is the weak label. Accuracy "
        "is that of the votes on the transfer set, and uses true labels; the estimated accuracy is "
        "the label model's and uses none.</p>"
        f"{lines}{_html_table('Supervisors', SUPERVISOR_HEADS, rows)}</section>"
    )


def _labels_panel(results: Mapping[str, Any]) -> str:
    """Return the panel of what methods made of the texts; empty for results without any."""
    lines = "".join(f"<p>{_escape(line)}.</p>" for line in label_lines(results))
    if not lines:
        return ""
    return (
        '<section class="panel"><h2>Selected texts</h2>'
        "<p>What became of the items of the transfer set, summed over all runs.</p>"
        f"{lines}</section>"
    )


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
    return _html_table("Every run", head, body)


def _means_table(results: Mapping[str, Any]) -> str:
    parts = ("all", "weak_right", "weak_wrong")
    further = further_scores(results)
    head = ["model", "accuracy", "PGR", "interval", "balanced", "F1", "AUROC", *further.values(),
            "agreement, all", "supervisor right", "supervisor wrong"]  # fmt: skip
    names = ("balanced", "f1", "auroc", *further)
    body = [_means_row("weak supervisor", results["summary"][0], "weak", names)]
    for s in results["summary"]:
        pgr = NOT_REPORTED if s["pgr_mean"] is None else f"{s['pgr_mean']:.2f}"
        agreement = [format_number(s["agreement"][part]) for part in parts]
        body.append(
            _means_row(
                f"student · {s['name']}", s, "student", names, [pgr, format_interval(s)], agreement
            )
        )
    body += [_means_row(title, row, "ceiling", names) for title, row in ceilings(results).items()]
    return _html_table("Means over seeds", head, body)


def _means_row(
    title: str,
    row: Mapping[str, Any],
    model: str,
    names: Sequence[str],
    pgr: Sequence[str] = ("–", "–"),
    agreement: Sequence[str] = ("–", "–", "–"),
) -> list[str]:
    scores = [row[f"{model}_{name}"] for name in names]
    return [title, format_number(row[model]), *pgr, *map(format_number, scores), *agreement]


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
    return _html_table(
        "Stages and digests", ["stage", "folder", "digest", "seconds", "reused"], body
    )
