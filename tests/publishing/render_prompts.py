"""Render chat templates with engines other than training's: `render_prompts.py CASES OUT`. Each sees the same JSON."""

import contextlib
import importlib.metadata
import json
import sys
from types import SimpleNamespace

import jinja2
import tokenizers
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


def with_vllm(template, given):
    """As its server does: the request's messages read, then rendered; a model's settings are only asked for images."""
    unset = ("revision", "code_revision", "hf_overrides", "multimodal_config", "tokenizer_revision", "tokenizer", "model")
    model = SimpleNamespace(**dict.fromkeys(unset), enable_prompt_embeds=False, trust_remote_code=False)
    model.hf_config = model.hf_text_config = SimpleNamespace(model_type="qwen3")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()))
    content = hf.resolve_chat_template_content_format(template, given["tools"], "auto", tokenizer, model_config=model)
    conversation, _, _ = parse_chat_messages([as_sent(message) for message in given["messages"]], model, content)
    rest = {"tools": given["tools"], "add_generation_prompt": given["add_generation_prompt"]}
    return hf.safe_apply_chat_template(model, tokenizer, conversation, chat_template=template, tokenize=False, **rest)


def as_sent(message):
    """As clients of OpenAI's API send it: arguments are JSON text."""
    calls = [
        {**call, "id": "call0", "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message.get("tool_calls", [])
    ]
    return message | ({"tool_calls": calls} if calls else {}) | ({"tool_call_id": "call0"} if message["role"] == "tool" else {})


ENGINES = {
    f"transformers {transformers.__version__}": with_transformers,
    f"jinja2 {jinja2.__version__}": with_jinja2,
}
with contextlib.suppress(ImportError):  # it is beside transformers 4 only
    import minijinja

    ENGINES[f"minijinja {importlib.metadata.version('minijinja')}"] = with_minijinja
with contextlib.suppress(ImportError):
    import vllm
    from vllm.renderers import hf
    from vllm.renderers.chat_utils.chat_message import parse_chat_messages

    ENGINES[f"vLLM {vllm.__version__}"] = with_vllm


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
