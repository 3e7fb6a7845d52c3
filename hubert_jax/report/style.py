"""The page's style sheet: one column, light and dark, narrow screens and paper."""

CSS = """\
:root {
  color-scheme: light dark;
  --page: #fcfcfb; --panel: #f3f3f0; --ink: #1b1b19; --muted: #63625c; --rule: #dcdbd5;
  --series-1: #2a78d6; --series-2: #c8501d; --series-3: #14835c; --series-4: #a3a29a;
  --good: #14744f; --bad: #b3361b; --mark: #f8d9cc;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #191918; --panel: #232321; --ink: #ecebe6; --muted: #a5a49c; --rule: #3b3a36;
    --series-1: #5a9cea; --series-2: #ee8355; --series-3: #3fb78a; --series-4: #6f6e68;
    --good: #55c596; --bad: #f08c70; --mark: #6b3320;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 70rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif;
}
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0.5rem 0 0.75rem; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 0.5rem; padding-top: 0.75rem;
  border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.5rem 0 0.25rem; }
p { max-width: 46rem; margin: 0.5rem 0; }
.verdict { font-size: 1.05rem; padding: 0.75rem 1rem; background: var(--panel);
  border-left: 4px solid var(--series-1); max-width: none; }
.verdict.short { border-left-color: var(--bad); }
.absent { color: var(--muted); font-style: italic; }
.columns { display: grid;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 0.5rem 2rem;
  align-items: start; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
.columns table { width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 1rem 0.3rem 0;
  border-bottom: 1px solid var(--rule); }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 400; }
caption { text-align: left; font-weight: 600; padding: 0.75rem 0 0.25rem; }
.number { text-align: right; }
td.number { white-space: nowrap; }
.hint { display: none; color: var(--muted); font-size: 0.85rem; font-style: italic; }
tr.total > * { font-weight: 700; border-bottom: 0; }
.yes { color: var(--good); font-weight: 600; white-space: nowrap; }
.no { color: var(--bad); font-weight: 600; white-space: nowrap; }
.note { color: var(--muted); }
figure { margin: 1rem 0 1.75rem; }
figcaption p { max-width: none; }
figcaption { max-width: 46rem; font-size: 0.92rem; color: var(--muted); margin-top: 0.5rem; }
svg { display: block; width: 100%; height: auto; max-width: var(--natural-width); }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif !important; }
.panels { display: grid;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.25rem 2rem; }
.wide svg { min-width: 52rem; }
.seconds { width: 100%; max-width: 46rem; }
.share { width: 45%; min-width: 6rem; }
.share div { height: 0.7rem; margin-top: 0.45rem; min-width: 1px; background: var(--series-1);
  border-radius: 0 3px 3px 0; }
.sentences { width: 100%; }
.sentences tbody { border-bottom: 1px solid var(--muted); }
.sentences tbody tr > * { border-bottom: 0; padding-top: 0.2rem; padding-bottom: 0.2rem; }
.sentences .who { color: var(--muted); white-space: nowrap; }
.sentences .text { overflow-wrap: anywhere; width: 100%; }
.sentences .id { font-size: 0.85rem; color: var(--muted); padding-top: 0.6rem; }
mark { background: var(--mark); color: inherit; border-bottom: 2px solid var(--bad); }
del { color: var(--bad); font-weight: 700; text-decoration: none; }
footer { margin-top: 3rem; color: var(--muted); font-size: 0.85rem; }
@media (max-width: 54rem) { .hint { display: block; } }
@media (max-width: 40rem) {
  body { padding: 0.75rem 0.9rem 3rem; font-size: 15px; }
  th, td { padding-right: 0.6rem; }
}
@media print { body { max-width: none; } .scroll { overflow: visible;
  } .wide svg { min-width: 0; } }
"""
