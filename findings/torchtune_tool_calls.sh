#!/usr/bin/env bash
# torchtune: of a row with a tool call the question is trained as the assistant's turn.
#
# Versions: torchtune 0.6.1, torchao 0.10.0, torch 2.13.0 (CPU)
# Guess:    OpenAIToMessages renders a tool call, or refuses a message whose content is null; `weight: 0` of OpenAI's format takes an answer
#           out of the loss.
# Seen:     an assistant message with `content: null` and `tool_calls` gets the content of the message before it, and the loss counts it:
#           the model learns to repeat the question, or the tool's answer. The call is in no message. As the first message it is an
#           error (UnboundLocalError). `weight` is ignored.
# Effect:   nothing is said. 0.6.1 is the newest release; convert tool calls to text yourself. Talaria renders calls by the tokenizer's
#           template, and takes answers of weight 0 out of the loss.
source "$(dirname "$0")/install.sh" torchtune==0.6.1 torchao==0.10.0 torch==2.13.0
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
from torchtune.data import OpenAIToMessages

call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
rows = [
    {"role": "user", "content": "How is the weather in Oslo?"},
    {"role": "assistant", "content": None, "tool_calls": [call]},
    {"role": "tool", "content": "4 degrees, rain", "tool_call_id": "1"},
    {"role": "assistant", "content": "Cold and wet.", "weight": 0},
]
made = OpenAIToMessages()({"messages": rows})["messages"]
for message in made:
    print(f"{message.role}: {message.text_content!r}{'' if message.masked else ', in the loss'}")
assert [message.text_content for message in made] == [rows[0]["content"], rows[0]["content"], rows[2]["content"], rows[3]["content"]]
assert [message.role for message in made if not message.masked] == ["assistant", "assistant"]
try:
    OpenAIToMessages()({"messages": rows[1:]})
except UnboundLocalError as error:
    print("as the first message:", error)
else:
    raise SystemExit("content: null is accepted as the first message now")
PY
