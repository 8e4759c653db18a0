"""Write report.html, one file that loads nothing, and the plots beside it."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s_fast.files import write_bytes
from w2s_fast.report import DECEPTION_PLOT, PAGE, PLOT, card_panel, page_charts, page_tables
from w2s_fast.report.deception_figure import deception_figure
from w2s_fast.report.figure import results_figure
from w2s_fast.report.label_rows import label_lines
from w2s_fast.report.model_rows import interval_note, level_text, notes, weak_label_line
from w2s_fast.report.names import name_parts, printable

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def write_report(
    out: Path, results: Mapping[str, Any], items: Mapping[str, Any] | None = None
) -> None:
    """Write plot.png, plot.svg and report.html into ``out``, each atomically.

    Runs with a conflict have deception.png and deception.svg too.

    Args:
        out: An existing folder.
        results: The contents of results.json. Parts that it does not have are left out.
        items: The contents of items.json; None: the page has no explorer.
    """
    for kind in ("png", "svg"):
        write_bytes(out / f"{PLOT}.{kind}", results_figure(results, kind))
        if results.get("deception"):
            write_bytes(out / f"{DECEPTION_PLOT}.{kind}", deception_figure(results, kind))
    write_bytes(out / PAGE, html_page(results, items).encode())


def html_page(results: Mapping[str, Any], items: Mapping[str, Any] | None = None) -> str:
    """Return the page as HTML.

    Args:
        results: The contents of results.json.
        items: The contents of items.json, or None.
    """
    known = results.get("provenance", {})
    script = _asset("page.js")
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            style=_asset("page.css"),
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            task=known.get("config", {}).get("task", {}).get("name", "results"),
            best=page_tables.best_student(results),
            notes=notes(results),
            intervals=interval_note(results),
            level=level_text(),
            accuracy=page_charts.accuracy_chart(results),
            pgr=page_charts.pgr_chart(results),
            gap=page_charts.gap_plot(results),
            differences=page_charts.difference_chart(results),
            baseline=results["differences"][0]["baseline"] if results.get("differences") else "",
            agreement=page_charts.agreement_chart(results),
            groups=page_charts.group_chart(results),
            calibration=page_charts.calibration_plots(results),
            training=page_charts.training_plots(results),
            card=card_panel.supervisor_card(results),
            weak_labels=weak_label_line(results),
            label_lines=label_lines(results),
            supervisors=page_tables.many_supervisors(results),
            merged=page_tables.merged(results),
            deception=page_tables.deception(results),
            deception_figure=_deception_image(results),
            diagnostics=page_tables.diagnostics(results),
            means=page_tables.means_table(results),
            runs=page_tables.runs_table(results),
            classes=page_tables.classes_table(results),
            facts=page_tables.facts(results),
            stages=page_tables.stages_table(results),
            config=json.dumps(known.get("config", {}), indent=2),
            version=known.get("versions", {}).get("w2s_fast", ""),
            utc=known.get("utc", ""),
            items=_printable_items(items) if items else None,
        )
    )


@functools.cache
def _environment() -> Environment:
    """Return the templates: every value is escaped, and stays in its place and direction."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("w2s_fast.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters["name"] = _name
    return environment


def _shown(value: Any) -> Any:
    """Replace characters of a text that show nothing, or reorder others."""
    from markupsafe import Markup

    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _name(text: str) -> Markup:
    """Return a name as HTML that breaks after separators and does not reorder what is around it."""
    from markupsafe import Markup, escape

    parts = Markup("<wbr>").join(escape(part) for part in name_parts(printable(text)))
    return Markup('<bdi dir="ltr">{}</bdi>').format(parts)


def _asset(name: str) -> Markup:
    """Return a style sheet or script of this package."""
    from markupsafe import Markup

    return Markup((resources.files("w2s_fast.report") / "templates" / name).read_text("utf-8"))


def _deception_image(results: Mapping[str, Any]) -> str:
    if not results.get("deception"):
        return ""
    return base64.b64encode(deception_figure(results, "svg")).decode()


def _printable_items(items: Mapping[str, Any]) -> dict[str, Any]:
    """Return the items with texts that can be shown; line breaks are kept."""

    def shown(value: Any) -> Any:
        if isinstance(value, str):
            return "".join(c if c in "\n\\" else printable(c) for c in value)
        if isinstance(value, list):
            return [shown(entry) for entry in value]
        if isinstance(value, Mapping):
            return {key: shown(entry) for key, entry in value.items()}
        return value

    return {key: shown(value) for key, value in items.items()}
