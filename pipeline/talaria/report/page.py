"""The data report as one self-contained page: tiles, histograms as SVG, tables. Light or dark as the reader's system is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

Facts = dict[str, Any]

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #667085; --line: #e4e7ec; --paper: #fff; --card: #f8f9fb;
  --bar: #3b6fd4; --rest: #9db6e8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --soft: #98a2b3; --line: #2c323c; --paper: #14171c;
  --card: #1b1f26; --bar: #6e9bf0; --rest: #3d5788; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .75rem; }
p { margin: .25rem 0; } .soft { color: var(--soft); }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); }
.tiles { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); margin-top: 1.5rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .9rem 1rem; min-width: 0; }
.tile b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; margin: .5rem 0; } rect { fill: var(--bar); } rect.rest { fill: var(--rest); }
svg text { fill: var(--soft); font-size: 11px; } line { stroke: var(--line); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; } .number { text-align: right; white-space: nowrap; padding-right: 1rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: 12.5px/1.45 ui-monospace, monospace; max-height: 14rem;
  overflow: auto; }
.share { background: var(--bar); height: .6rem; border-radius: .2rem; min-width: 1px; } summary { cursor: pointer; }
"""


def page(report: Facts) -> str:
    """Render report.json as HTML. Every value from the data is escaped."""
    body = "\n".join(
        [
            f"<h1>Data report: {escape(report['name'])}</h1>",
            f'<p class="soft">{_origin(report["origin"])}</p>',
            _tiles(report),
            "<h2>Lengths</h2>",
            f'<div class="grid">{_histograms(report["distributions"])}</div>',
            "<h2>Dropped rows</h2>",
            _drops(report["dropped"]),
            "<h2>Mixture</h2>" + _mixture(report["mixture"]) if "mixture" in report else "",
            "<h2>Sources</h2>" + _sources(report["sources"]) if report["sources"] else "",
            "<h2>Longest rows</h2>",
            _rows(report["longest"]),
            "<h2>Odd rows</h2>",
            _oddities(report["oddities"]),
        ]
    )
    title = f"<title>Data report: {escape(report['name'])}</title>"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">{title}'
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'


def failed_page(name: str, sentence: str) -> str:
    """HTML that stands where a report could not be made."""
    head = f'<meta charset="utf-8"><title>Data of {escape(name)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><p>{escape(sentence)}</p></body></html>\n'


def _origin(origin: Facts) -> str:
    if origin.get("source") == "hub":
        text = f"{origin['repo']} at {origin['commit']}"
    elif origin.get("source") == "local":
        text = str(origin.get("path"))
    elif origin.get("source") == "sample":
        text = f"bundled sample, {origin['rows'] + origin.get('tool_rows', 0):,} rows, seed {origin['seed']}"
    elif origin.get("source") == "mixture":
        return "<br>".join(f"{escape(name)}: {_origin(one)}" for name, one in origin["sources"].items())
    else:
        return ""
    files = origin.get("files", {})
    digests = ", ".join(
        f"{name} ({facts['bytes']:,} bytes, sha256 {facts['sha256'][:12]}…)" for name, facts in list(files.items())[:3]
    )
    return escape(f"{text}: {digests}" + (f" and {len(files) - 3} more files" if len(files) > 3 else ""))


def _tiles(report: Facts) -> str:
    rows, tokens = report["rows"], report["tokens"]
    kept = report["conversations"]
    tiles = [
        ("rows", f"{rows:,}"),
        ("conversations trained on", f"{kept.get('train', 0):,}"),
        ("held out", f"{kept.get('validation', 0):,}"),
        ("tokens", f"{tokens:,}"),
        ("supervised tokens", f"{report['supervised_tokens']:,} ({_percent(report['supervised_tokens'], tokens)})"),
        ("with a system message", _percent(report["with_system"], rows)),
        ("with several questions", _percent(report["multi_turn"], rows)),
        ("repeat an earlier row", f"{report['duplicates']:,}"),
    ]
    return '<div class="tiles">' + "".join(f'<div class="card tile"><b>{v}</b>{n}</div>' for n, v in tiles) + "</div>"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "–"


_TITLES = {
    "tokens": "Tokens a conversation",
    "characters": "Characters a row",
    "user_turns": "Questions a row",
    "supervised_share": "Supervised share of a conversation, percent",
}


def _histograms(distributions: Facts) -> str:
    cards = []
    for name, found in distributions.items():
        quantiles = " · ".join(
            f"{label} {value:,.4g}" if value < 1000 else f"{label} {value:,.0f}" for label, value in found["quantiles"].items()
        )
        mean = "" if found["mean"] is None else f"mean {found['mean']:,} · "
        cards.append(f'<div class="card"><b>{_TITLES[name]}</b>{histogram(found)}<p class="soft">{mean}{quantiles}</p></div>')
    return "".join(cards)


def histogram(found: Facts, width: int = 480, height: int = 150) -> str:
    """Draw bars as SVG; the last, paler bar stands for everything above the 99th percentile."""
    bins: Sequence[Facts] = found["bins"]
    if not bins:
        return ""
    tallest = max(entry["rows"] for entry in bins) or 1
    step, base = width / len(bins), height - 18
    bars = []
    for number, entry in enumerate(bins):
        tall = max((base - 14) * entry["rows"] / tallest, 0.75 if entry["rows"] else 0)
        last = number == len(bins) - 1 and found["open"]
        until = "and more" if last else f"to {entry['from'] + found['width']:,.6g}"
        place = f'x="{number * step:.1f}" y="{base - tall:.1f}" width="{max(step - 1, 0.5):.1f}" height="{tall:.1f}"'
        hint = f"{entry['from']:,.6g} {until}: {entry['rows']:,} rows"
        bars.append(f"<rect{' class=rest' if last else ''} {place}><title>{hint}</title></rect>")
    labels = [
        (0, "start", bins[0]["from"]),
        (width / 2, "middle", bins[len(bins) // 2]["from"]),
        (width, "end", bins[-1]["from"]),
    ]
    ticks = "".join(
        f'<text x="{x:.0f}" y="{height - 4}" text-anchor="{anchor}">{value:,.6g}</text>' for x, anchor, value in labels
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img"><line x1="0" x2="{width}" y1="{base}" y2="{base}"/>{"".join(bars)}'
        f'{ticks}<text x="{width}" y="10" text-anchor="end">tallest bar: {tallest:,} rows</text></svg>'
    )


_NUMBERS = {"Rows", "Row", "Tokens", "Characters", "Rows read", "Chosen", "To train", "Held out", "Dropped", "Supervised"}


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th{' class=number' if name in _NUMBERS else ''}>{name}</th>" for name in head)
    body = "".join("<tr>" + "".join(cells) + "</tr>" for cells in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: Any) -> str:
    return f'<td class="number">{text:,}</td>' if isinstance(text, int) else f"<td>{escape(str(text))}</td>"


def _drops(dropped: Sequence[Facts]) -> str:
    found = [entry for entry in dropped if entry["rows"]]
    if not found:
        return '<p class="soft">None.</p>' if dropped else '<p class="soft">Not known: the folders have no manifest.</p>'
    rows = [[_cell(e["stage"]), _cell(e["reason"]), _cell(e["meaning"]), _cell(e["rows"])] for e in found]
    return _table(("Stage", "Reason", "Meaning", "Rows"), rows)


def _mixture(sources: Sequence[Facts]) -> str:
    """A row a source: rows to train are those chosen with their copies; tokens are of what is trained."""
    head = ("Source", "Rows read", "Dropped", "Chosen", "To train", "Held out", "Tokens", "Supervised")
    rows = [
        [
            _cell(entry["source"]),
            _cell(entry["rows_in"]),
            _cell(sum(entry["dropped"].values())),
            *(_cell(entry[name]) for name in ("chosen", "train", "held_out")),
            *(_cell(entry[name].get("train", 0)) for name in ("tokens", "supervised_tokens")),
        ]
        for entry in sources
    ]
    return _table(head, rows)


def _sources(sources: Sequence[Facts]) -> str:
    most = max(entry["rows"] for entry in sources)
    rows = []
    for entry in sources:
        bar = f'<td style="width: 40%"><div class="share" style="width: {100 * entry["rows"] / most:.1f}%"></div></td>'
        name = "(none)" if entry["source"] is None else entry["source"]
        rows.append([_cell(name), _cell(entry["rows"]), _cell(entry["tokens"]), bar])
    return _table(("Source", "Rows", "Tokens", ""), rows)


def _rows(rows: Sequence[Facts]) -> str:
    cells = [
        [
            _cell(r["row"]),
            _cell(r["characters"]),
            _cell("dropped" if r["tokens"] is None else r["tokens"]),
            f"<td><pre>{escape(r['text'])}</pre></td>",
        ]
        for r in rows
    ]
    return _table(("Row", "Characters", "Tokens", "Text"), cells)


def _oddities(oddities: Sequence[Facts]) -> str:
    parts = []
    for found in oddities:
        title = f"{escape(found['meaning'])}: <b>{found['rows']:,}</b> {'row' if found['rows'] == 1 else 'rows'}"
        if found["examples"]:
            parts.append(f'<details class="card"><summary>{title}</summary>{_rows(found["examples"])}</details>')
        else:
            parts.append(f'<div class="card soft">{title}</div>')
    return '<div style="display: grid; gap: .5rem">' + "".join(parts) + "</div>"
