"""The encoding rule: a conversation as ChatML segments, and which of them the loss counts.

    <|im_start|>system\\n...<|im_end|>\\n<|im_start|>user\\n...<|im_end|>\\n<|im_start|>assistant\\n...<|im_end|>\\n

Each segment is encoded by itself. A message that the model reads (system, user, tool) is one segment, `role\\ncontent`, as a
server encodes it. An answer is two: the header `assistant\\n` ends the generation prompt, and the content is what the model
must produce after it. So the ids of a prompt are always a prefix of the ids of its conversation, also where an answer
begins with a line break, which the tokenizer would otherwise merge with the header's. Text that looks like a control token
stays text: only the control segments become control tokens.

Pure, and the specification: encoder.py computes the same with arrays, and every run compares the two on a sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

START, END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
ASSISTANT = "assistant"
HEADER = f"{ASSISTANT}\n"
SWITCHES = ("train", "weight", "step_loss_mask")
"""Fields of a message that take an answer out of the loss where they are false or 0; absent or null leaves it in."""

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""`render` as the Jinja template that is saved with every tokenizer: content byte for byte, prefix-stable."""

Message = Mapping[str, Any]
Conversation = Sequence[Message]


class Segment(NamedTuple):
    text: str
    control: bool = False
    """A control token, not text."""
    supervised: bool = False
    """Its tokens count in the loss."""


def template(bos: str = "") -> str:
    """TEMPLATE behind the token that the tokenizer puts before a text."""
    return f"{{{{ {bos!r} }}}}{TEMPLATE}" if bos else TEMPLATE


def is_chatml(source: str | None) -> bool:
    """Whether this is the template that Talaria saves."""
    return source is not None and source.endswith(TEMPLATE)


def segments(messages: Sequence[Message], supervise_newline: bool = True, bos: str = "") -> Iterator[Segment]:
    """The segments of a conversation. `supervise_newline`: the line break after an answer's <|im_end|> counts too."""
    if bos:
        yield Segment(bos, control=True)
    for message in messages:
        role, content, counts = message["role"], message["content"], is_supervised(message)
        yield Segment(START, control=True)
        if role == ASSISTANT:
            yield Segment(HEADER)
            yield Segment(content, supervised=counts)
        else:
            yield Segment(f"{role}\n{content}")
        yield Segment(END, control=True, supervised=counts)
        yield Segment("\n", supervised=counts and supervise_newline)


def prompt(messages: Sequence[Message], bos: str = "") -> Iterator[Segment]:
    """The segments after which the model answers."""
    yield from segments(messages, bos=bos)
    yield Segment(START, control=True)
    yield Segment(HEADER)


def is_supervised(message: Message) -> bool:
    """Whether the loss counts this message: an answer that no switch turns off."""
    return message["role"] == ASSISTANT and all(message.get(switch) is None or message[switch] != 0 for switch in SWITCHES)


def render(messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """The conversation as text, as the chat template renders it."""
    return "".join(segment.text for segment in (prompt(messages) if add_generation_prompt else segments(messages)))
