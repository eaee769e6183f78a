"""The page of a comparison: one file, without anything from another host; filters by task, verdict and difference."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from typing import Any

from talaria.evaluation.compare.rows import Row, differs, marked, totals

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { margin: 0 auto; max-width: 90rem; padding: 1.5rem;
       background: light-dark(#fff, #15181c); color: light-dark(#1c2024, #e3e6ea) }
h1 { font-size: 1.4rem } form { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0 } select { font: inherit }
table { border-collapse: collapse; margin: 1rem 0 } th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0 }
article { border-top: 1px solid light-dark(#d5d9de, #343a42); padding: .8rem 0 }
article > div { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: 1rem }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, monospace; margin: .2rem 0 }
h3 { font-size: .9rem; margin: 0 } .soft { color: light-dark(#565d66, #a3abb5) }
mark { background: light-dark(#ffe9a8, #5a4708); color: inherit } [hidden] { display: none }
"""
_SCRIPT = """
const form = document.querySelector('form'), rows = [...document.querySelectorAll('article')];
const show = () => {
  const [task, verdict, same] = ['task', 'verdict', 'same'].map((name) => form.elements[name].value);
  let shown = 0;
  for (const row of rows) {
    const right = JSON.parse(row.dataset.right);
    const fits = (!task || row.dataset.task === task) && (!same || row.dataset.differs === 'yes') &&
      (!verdict || (verdict === 'lost' ? right[0] && right.slice(1).includes(false) :
        verdict === 'won' ? !right[0] && right.slice(1).includes(true) : right.every((one) => !one)));
    row.hidden = !fits;
    shown += fits;
  }
  document.querySelector('output').textContent = `${shown} of ${rows.length} prompts`;
};
form.addEventListener('change', show);
show();
"""


def _source(text: str) -> str:
    """An inline style or script as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY = f"default-src 'none'; style-src {_source(_STYLE)}; script-src {_source(_SCRIPT)}; base-uri 'none'; form-action 'none'"
"""The page's content security policy: its own style and script, and nothing that an answer could bring."""


def page(rows: Sequence[Row], title: str) -> str:
    """Return the page as HTML. The first model is what the others are marked against."""
    models = list(rows[0]["answers"]) if rows else []
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    options = "".join(f"<option>{escape(task)}</option>" for task in tasks)
    first = escape(models[0]) if models else "the first"
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{escape(title)}</title><style>{_STYLE}</style>
<h1>{escape(title)}</h1>
{_table(rows, models)}
<form>
<label>Task <select name="task"><option value="">all</option>{options}</select></label>
<label>Verdict <select name="verdict"><option value="">all</option><option value="lost">{first} right, another wrong</option>
<option value="won">{first} wrong, another right</option><option value="none">all wrong</option></select></label>
<label>Answers <select name="same"><option value="">all</option><option value="no">that differ</option></select></label>
<output class="soft"></output></form>
{"".join(map(_article, rows))}
<script>{_SCRIPT}</script></html>
"""


def _table(rows: Sequence[Row], models: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *models))
    body = "".join(
        f"<tr><th>{escape(task)}</th>{''.join(f'<td>{scores[name]:.3f}</td>' for name in models if name in scores)}</tr>"
        for task, scores in totals(rows).items()
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _article(row: Row) -> str:
    answers = list(row["answers"].items())
    right = escape(json.dumps([one["right"] for _, one in answers]), quote=True)
    compared = "".join(_cell(name, one, answers[0][1]["answer"]) for name, one in answers)
    tags = f" · {escape(', '.join(row['tags']))}" if row["tags"] else ""
    return (
        f'<article data-task="{escape(row["task"], quote=True)}" data-differs="{"yes" if differs(row) else "no"}" '
        f'data-right="{right}">'
        f'<p class="soft">{escape(row["task"])} · {escape(row["item"])}{tags}</p><pre>{escape(row["prompt"])}</pre>'
        f'<p class="soft">expected</p><pre>{escape(_text(row["expected"]))}</pre><div>{compared}</div></article>'
    )


def _cell(name: str, one: dict[str, Any], first: str) -> str:
    text = "".join(f"<mark>{escape(piece)}</mark>" if new else escape(piece) for piece, new in marked(first, one["answer"]))
    why = f" {escape(one['why'])}" if one["why"] else ""
    verdict = f"{'right' if one['right'] else 'wrong'} ({one['score']:.2f}){why}"
    return f'<section><h3>{escape(name)}</h3><pre>{text}</pre><p class="soft">{verdict}</p></section>'


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
