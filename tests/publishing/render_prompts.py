"""Render chat templates with engines other than training's: `render_prompts.py CASES OUT`. Each sees the same JSON."""

import contextlib
import importlib.metadata
import json
import sys

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template


def refuse(text):
    raise ValueError(text)


def with_jinja2(template, given):
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(template).render(**given)


def with_minijinja(template, given):
    environment = minijinja.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.add_function("raise_exception", refuse)
    return environment.render_str(template, **given)


def with_transformers(template, given):
    rest = {name: value for name, value in given.items() if name not in ("messages", "tools")}
    messages, tools = [given["messages"]], given["tools"]
    return render_jinja_template(messages, tools=tools, chat_template=template, **rest)[0][0]


ENGINES = {
    f"transformers {transformers.__version__}": with_transformers,
    f"jinja2 {jinja2.__version__}": with_jinja2,
}
with contextlib.suppress(ImportError):  # it is beside transformers 4 only
    import minijinja

    ENGINES[f"minijinja {importlib.metadata.version('minijinja')}"] = with_minijinja


def tried(render, template, given):
    try:
        return render(template, given)
    except Exception as error:
        return f"fails: {type(error).__name__}"


def main(cases, out):
    with open(cases, encoding="utf-8") as file:
        told = json.load(file)
    found = {name: [tried(render, case["template"], case["given"]) for case in told] for name, render in ENGINES.items()}
    with open(out, "w", encoding="utf-8") as file:
        json.dump(found, file)


main(*sys.argv[1:])
