"""The page: one HTML file with everything in it, for light and dark screens, no network."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from string import Template
from typing import Any

from w2s_fast.report.chart import accuracy_chart, pgr_chart
from w2s_fast.report.rows import rows
from w2s_fast.report.style import STYLE
from w2s_fast.report.table import ceilings, interval, notes, number

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
<section class="panel"><h2>Between floor and ceiling</h2>
<p>Accuracy on the same test items. Dots are seeds, bars their means; the shaded band is the gap
that a student can recover.</p>
<div class="scroll">$accuracy</div></section>
<section class="panel"><h2>Performance gap recovered</h2>
<p>0 is the supervisor, 1 the ceiling. Lines are 95&nbsp;% bootstrap intervals over seeds and test
items; dots are seeds.</p>
<div class="scroll">$recovered</div></section>
<section class="panel"><h2>Every run</h2><div class="scroll">$runs</div></section>
<section class="panel"><h2>Means over seeds</h2>
<p>Agreement is the share of test items where student and supervisor name the same class: of all,
of those the supervisor gets right, and of those it gets wrong. A student that generalizes leaves
the supervisor where it is wrong.</p>
<div class="scroll">$agreement</div></section>
<section class="panel"><h2>Where this comes from</h2>$facts
<details><summary>Configuration</summary><pre>$config</pre></details>
<details><summary>Stages and digests</summary><div class="scroll">$stages</div></details>
</section>
<footer>w2s_fast $version · $utc</footer>
</main>
</body>
</html>
""")


def page(results: Mapping[str, Any]) -> str:
    """Return the page as HTML.

    Args:
        results: What results.json holds.
    """
    facts = results["provenance"]
    shown = rows(results)
    return _PAGE.substitute(
        title=_text(f"Task {facts['config']['task']['name']}"),
        style=STYLE,
        lead=_lead(results),
        cards="".join(_cards(results)),
        notes="".join(f'<p class="note">{_text(n)}</p>' for n in notes(results)),
        accuracy=accuracy_chart(shown),
        recovered=pgr_chart([r for r in shown if r.student]),
        runs=_runs(results),
        agreement=_agreement(results),
        facts=_facts(facts),
        config=_text(json.dumps(facts["config"], indent=2)),
        stages=_stages(facts),
        version=_text(facts["versions"]["w2s_fast"]),
        utc=_text(facts["utc"]),
    )


def _text(value: Any) -> str:
    return html.escape(str(value))


def _lead(results: Mapping[str, Any]) -> str:
    kept = [s for s in results["summary"] if s["pgr_mean"] is not None]
    if not kept:
        return "The ceiling does not stand clearly above the floor, so no PGR is given."
    best = max(kept, key=lambda s: s["pgr_mean"])
    verb = "recovered" if best["pgr_mean"] >= 0 else "lost"
    return (
        f"Taught only by a supervisor of accuracy {number(best['weak'])}, the student with "
        f"<b>{_text(best['name'])}</b> reached {number(best['student'])} and {verb} "
        f"<b>{abs(best['pgr_mean']):.0%}</b> of the gap to the ceiling of "
        f"{number(best['ceiling'])} "
        f"(95&nbsp;% interval {best['pgr_low']:.0%} to {best['pgr_high']:.0%})."
    )


def _cards(results: Mapping[str, Any]) -> Iterable[str]:
    for row in rows(results):
        under = "accuracy"
        if row.student:
            under = "PGR refused" if row.pgr is None else f"PGR {row.pgr[0]:.2f}"
        yield (
            f'<div class="card" style="--c:{row.color}"><p>{_text(row.name)}</p>'
            f"<b>{number(row.mean)}</b><span>{under}</span></div>"
        )


def _table(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    cells = "".join(f"<th>{_text(h)}</th>" for h in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{_text(c)}</td>" for c in line) + "</tr>" for line in body
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table>"


def _runs(results: Mapping[str, Any]) -> str:
    models = ("weak", "student", "ceiling")
    head = ["method", "seed", *models, "PGR", "interval over items", "gap ± se"]
    body = [
        [
            r["name"],
            str(r["seed"]),
            *(number(r[m]) for m in models),
            "refused" if r["pgr"] is None else number(r["pgr"], 2),
            interval(r),
            f"{number(r['gap'])} ± {number(r['gap_se'])}",
        ]
        for r in results["runs"]
    ]
    return _table(head, body)


def _agreement(results: Mapping[str, Any]) -> str:
    parts = ("all", "weak_right", "weak_wrong")
    head = ["model", "accuracy", "balanced", "F1", "AUROC",
            "agreement, all", "supervisor right", "supervisor wrong"]  # fmt: skip
    first, dashes = results["summary"][0], ["–"] * len(parts)
    body = [["weak supervisor", *_scores(first, "weak"), *dashes]]
    for s in results["summary"]:
        split = [number(s["agreement"][p]) for p in parts]
        body.append([f"student · {s['name']}", *_scores(s, "student"), *split])
    for name, c in ceilings(results).items():
        title = f"ceiling · {name}" if name else "ceiling"
        body.append([title, *_scores(c, "ceiling"), *dashes])
    return _table(head, body)


def _scores(row: Mapping[str, Any], model: str) -> list[str]:
    names = (model, *(f"{model}_{score}" for score in ("balanced", "f1", "auroc")))
    return [number(row[name]) for name in names]


def _facts(facts: Mapping[str, Any]) -> str:
    git = facts["git"]
    commit = "no checkout"
    if git:
        commit = git["commit"][:12] + (" with local changes" if git["dirty"] else "")
    machine = facts["machine"]
    found = {
        "machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['cuda'] or 'no CUDA'}",
        "system": machine["system"],
        "kernels": ", ".join(f"{k} {v}" for k, v in facts["backends"].items() if v),
        "commit": commit,
        "versions": ", ".join(f"{k} {v}" for k, v in facts["versions"].items() if v),
    }
    items = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in found.items())
    return f"<dl>{items}</dl>"


def _stages(facts: Mapping[str, Any]) -> str:
    body = [
        [name, s["folder"], s["digest"][:16], number(s["seconds"], 1), "yes" if s["reused"] else ""]
        for name, s in facts["stages"].items()
    ]
    return _table(["stage", "folder", "digest", "seconds", "reused"], body)
