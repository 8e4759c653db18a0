"""The page's style sheet. Marks take their colour from ``--c`` and lighten it on dark ground."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --bg:#f6f7f9; --panel:#fff; --ink:#1d2129; --soft:#5c6573;
  --rule:#e4e7ec; --band:#eaf0fa; --lift:0%; }
@media (prefers-color-scheme: dark) { :root { --bg:#12151a; --panel:#1a1e25; --ink:#e8ebf0;
  --soft:#9aa4b2; --rule:#2b313b; --band:#202a3a; --lift:38%; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--bg); color:var(--ink);
  font:16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width:960px; margin:0 auto; padding:48px 24px 64px; }
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
svg { display:block; width:100%; min-width:640px; height:auto; font-size:13px; }
svg .grid { stroke:var(--rule); }
svg .band { fill:var(--band); }
svg .bound { stroke:var(--soft); stroke-dasharray:5 4; }
svg .muted { fill:var(--soft); font-size:12px; }
svg .name { fill:var(--ink); text-anchor:end; }
svg .c, svg .dot, svg .mean, svg .value { fill:color-mix(in srgb, var(--c), white var(--lift)); }
svg .dot { opacity:.45; }
svg .mean { stroke:var(--panel); stroke-width:2; }
svg .s { stroke:color-mix(in srgb, var(--c), white var(--lift)); stroke-width:4;
  stroke-linecap:round; }
svg .value { text-anchor:middle; font-size:12px; font-weight:600; white-space:pre;
  paint-order:stroke; stroke:color-mix(in srgb, var(--panel) 70%, transparent); stroke-width:3px; }
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
