#!/usr/bin/env bash
# Chat templates: four Jinja engines render one tool call in four ways.
#
# Versions: jinja2 3.1.6, transformers 5.23.0, minijinja 3.1.0 (PyPI), @huggingface/jinja 0.5.11 (npm; needs node)
# Guess:    `{{ value | tojson }}` gives the same JSON text everywhere; plain `{{ value }}` prints as Python does.
# Seen:     for {"b": "é<", "a": 1.0, "none": null, "yes": true}
#           engine               tojson                                                          {{ yes }} {{ none }} {{ -7 % 3 }}
#           jinja2               sorts keys; é and < become \u00e9 and \u003c                     True None 2
#           transformers         keeps order and characters                                      True None 2
#           minijinja            keeps order and é; < becomes \u003c                              True None 2
#           @huggingface/jinja   keeps order and characters; 1.0 becomes 1                       true (nothing) -1
# Effect:   tool schemas and arguments are other tokens in training (transformers) than behind an engine in Rust or JavaScript. Render a
#           sample of real rows with the engine that serves before training on tools.
command -v npm >/dev/null || { echo "needs node and npm"; exit 1; }
source "$(dirname "$0")/install.sh" jinja2==3.1.6 transformers==5.23.0 minijinja==3.1.0
npm install --silent --no-audit --no-fund @huggingface/jinja@0.5.11 >/dev/null
cat > render.mjs <<'JS'
import {readFileSync} from "node:fs";
import {Template} from "@huggingface/jinja";
const {templates, value} = JSON.parse(readFileSync("input.json", "utf8"));
console.log(JSON.stringify(templates.map(template => new Template(template).render({value}))));
JS
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import json, subprocess
import jinja2, minijinja
from transformers.utils.chat_template_utils import _compile_jinja_template

value = {"b": "é<", "a": 1.0, "none": None, "yes": True}
templates = ["{{ value | tojson }}", "{{ value.yes }} {{ value.none }} {{ -7 % 3 }}"]
json.dump({"templates": templates, "value": value}, open("input.json", "w"))
found = {
    "jinja2": [jinja2.Environment().from_string(t).render(value=value) for t in templates],
    "transformers": [_compile_jinja_template(t).render(value=value) for t in templates],
    "minijinja": [minijinja.Environment().render_str(t, value=value) for t in templates],
    "@huggingface/jinja": json.loads(subprocess.check_output(["node", "render.mjs"])),
}
for engine, texts in found.items():
    print(engine, *texts, sep="   ")
assert found == {
    "jinja2": [r'{"a": 1.0, "b": "\u00e9\u003c", "none": null, "yes": true}', "True None 2"],
    "transformers": ['{"b": "é<", "a": 1.0, "none": null, "yes": true}', "True None 2"],
    "minijinja": [r'{"b": "é\u003c", "a": 1.0, "none": null, "yes": true}', "True None 2"],
    "@huggingface/jinja": ['{"b": "é<", "a": 1, "none": null, "yes": true}', "true  -1"],
}
PY
