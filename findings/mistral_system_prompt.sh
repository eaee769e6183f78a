#!/usr/bin/env bash
# mistral-common: the system prompt stands before the last question, not before the first.
#
# Versions: mistral-common 1.13.1
# Guess:    a conversation's prompt begins with its system prompt, and the prompt of the next turn continues the one before.
# Seen:     the tokenizer of Mistral Nemo and Pixtral (tekken, version 3) writes the system prompt into the last user message. The first
#           question of a longer conversation has none, and the prompts of two turns differ from that point on. White space at the end of an
#           earlier answer is removed.
# Effect:   a row with two supervised answers trains the first without the system prompt that it is served with; a server's prefix cache is
#           lost at every turn. Talaria's `tokenize.template: own` refuses such rows with a system message (`not_rendered`).
source "$(dirname "$0")/install.sh" mistral-common==1.13.1
py - <<'PY'
from pathlib import Path

import mistral_common
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

tokenizer = MistralTokenizer.from_file(Path(mistral_common.__file__).parent / "data" / "tekken_240911.json")
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "one?"}, {"role": "assistant", "content": "first "},
    {"role": "user", "content": "two?"},
]


def prompt(messages):
    found = tokenizer.encode_chat_completion(ChatCompletionRequest(messages=messages))
    print(repr(found.text))
    return found.tokens


first, second = prompt(CHAT[:2]), prompt(CHAT)
text = tokenizer.encode_chat_completion(ChatCompletionRequest(messages=CHAT)).text
common = next(number for number, (one, other) in enumerate(zip(first, second)) if one != other)
print(f"of {len(first)} tokens of the first prompt, the second one begins with {common}")
assert text.index("Be brief.") > text.index("first") and text.count("Be brief.") == 1
assert "first</s>" in text and common < len(first)
PY
