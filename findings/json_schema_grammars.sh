#!/usr/bin/env bash
# outlines-core, llguidance and xgrammar: one schema lets three engines write other answers, and none lets arguments come in another order.
#
# Versions: outlines-core 0.2.14, llguidance 1.9.1, xgrammar 0.2.8; beside them jsonschema 4.26.0
# Guess:    what an engine lets a model write under a schema is what the schema allows.
# Seen:     {"days": 3, "city": "Rome"} is valid and none of the three lets a model write it: keys have the order of the schema. Other keys are
#           valid too; only llguidance allows them. What an engine does not know it leaves out without a word: outlines-core `maximum`,
#           outlines-core and xgrammar `uniqueItems` and `not`; llguidance refuses such a schema. A pattern without ^ and $ matches the whole
#           text in two of three, and only one writes "Z\u00fcrich".
# Effect:   a model that was trained on calls with their arguments in another order than the schema's is made to write what it never
#           learned, and an answer under a schema still has to be checked. Train calls in the order of the tool's parameters.
source "$(dirname "$0")/install.sh" outlines-core==0.2.14 llguidance==1.9.1 xgrammar==0.2.8 jsonschema==4.26.0 torch==2.13.0
py - 2>/dev/null <<'PY'
import json
import re

import jsonschema
import xgrammar
from llguidance import LLMatcher, LLTokenizer
from outlines_core.json_schema import build_regex_from_schema

BYTES = LLTokenizer("byte")
COMPILER = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo([bytes([byte]) for byte in range(256)] + [b""], stop_token_ids=[256]))


def valid(schema, text):
    return jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))


def outlines(schema, text):
    return re.fullmatch(build_regex_from_schema(json.dumps(schema)), text) is not None


def llguidance(schema, text):
    matcher = LLMatcher(BYTES, LLMatcher.grammar_from_json_schema(json.dumps(schema)))
    if matcher.is_error():
        return "refused"
    return matcher.try_consume_tokens(list(text.encode())) == len(text.encode()) and matcher.is_accepting()


def xgr(schema, text):
    matcher = xgrammar.GrammarMatcher(COMPILER.compile_json_schema(json.dumps(schema)))
    return matcher.accept_string(text.encode()) and matcher.accept_token(256)


CALL = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city", "days"]}
NOT = {"type": "object", "properties": {"a": {"type": "integer"}}, "not": {"required": ["a"]}}
NO, YES = False, True
for schema, text, expected in (  # jsonschema, outlines-core, llguidance, xgrammar
    (CALL, '{"city": "Rome", "days": 3}', (YES, YES, YES, YES)),
    (CALL, '{"days": 3, "city": "Rome"}', (YES, NO, NO, NO)),
    (CALL, '{"city": "Rome", "days": 3, "why": "fun"}', (YES, NO, YES, NO)),
    (CALL, '{"city": "Z\\u00fcrich", "days": 3}', (YES, NO, NO, YES)),
    ({"type": "integer", "minimum": 1, "maximum": 7}, "9", (NO, YES, NO, NO)),
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "[1, 1]", (NO, YES, "refused", YES)),
    (NOT, '{"a": 1}', (NO, YES, "refused", YES)),
    ({"type": "string", "pattern": "[0-9]+"}, '"a12"', (YES, NO, YES, NO)),
):
    seen = tuple(engine(schema, text) for engine in (valid, outlines, llguidance, xgr))
    print(f"{text:42} jsonschema {seen[0]}, outlines-core {seen[1]}, llguidance {seen[2]}, xgrammar {seen[3]}")
    assert seen == expected, (text, seen)
PY
