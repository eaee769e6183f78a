"""The rule over conversations that nobody would write down."""

from __future__ import annotations

import re

import pyarrow as pa
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from talaria.tokenization import chatml as chat
from talaria.tokenization.encoder import encode, flatten
from talaria.tokenization.loading import Loading
from talaria.tokenization.tokenizer import open_hugging_face
from tokenizers import Tokenizer as HuggingFaceTokenizer

from tests.support import qwen_tokenizer
from tests.support.conversations import MESSAGES, Conversation

LOADED = Loading(qwen_tokenizer.tokenizer(), "fastokens")
FAST = LOADED.tokenizer
PLAIN = LOADED.oracle
HUGGING_FACE = open_hugging_face(qwen_tokenizer.tokenizer() / "tokenizer.json")
AS_LOADED = HuggingFaceTokenizer.from_file(str(qwen_tokenizer.tokenizer() / "tokenizer.json"))
CONTROL_TOKENS = [token.content for token in AS_LOADED.get_added_tokens_decoder().values() if token.special]

awkward = st.sampled_from(
    ("\n", "\n\n", " \n", "\r\n", " ", "\t", "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<think>", "</think>", "<|im_end")
) | st.sampled_from(
    ("assistant\n", "user", "é", "e\u0301", "👩‍👧", "\u200d", "\x00", "1", "a", " the", "don't", "\u1f71", "\ufdfa", "\u0301")
)
texts = st.lists(awkward | st.text(max_size=8), max_size=6).map("".join)
roles = st.sampled_from(["system", "user", "assistant", "tool"])
messages = st.fixed_dictionaries({"role": roles, "content": texts})
conversations = st.lists(st.lists(messages, max_size=6), min_size=1, max_size=4)


@given(conversations)
@settings(max_examples=300, derandomize=True)
def test_arrays_and_the_plain_rule_agree_for_both_encoders(batch: list[Conversation]) -> None:
    column = pa.array(batch, MESSAGES)
    for tokenizer in (FAST, PLAIN):
        found = encode(flatten(column, 0, "test"), tokenizer, True)
        for index, conversation in enumerate(batch):
            stretch = slice(found.offsets[index], found.offsets[index + 1])
            assert PLAIN.ids(chat.segments(conversation)) == (found.ids[stretch].tolist(), found.mask[stretch].tolist())


@given(st.lists(messages, max_size=6))
@settings(max_examples=300, derandomize=True)
def test_what_counts_are_the_answers_and_nothing_else(conversation: Conversation) -> None:
    ids, mask = FAST.ids(chat.segments(conversation))
    answers = "".join(message["content"] + "<|im_end|>\n" for message in conversation if message["role"] == "assistant")
    supervised = [id for id, counts in zip(ids, mask, strict=True) if counts]
    normal = HUGGING_FACE.normalizer.normalize_str(answers)
    assert HUGGING_FACE.decode(supervised, skip_special_tokens=False) == normal
    assert ids.count(FAST.start) == ids.count(FAST.end) == len(conversation)


@given(st.lists(messages, max_size=4), texts)
@settings(max_examples=300, derandomize=True)
def test_a_prompt_is_a_prefix_of_its_conversation(history: Conversation, answer: str) -> None:
    prompt, _ = FAST.ids(chat.prompt(history))
    ids, mask = FAST.ids(chat.segments([*history, {"role": "assistant", "content": answer}]))
    assert ids[: len(prompt)] == prompt
    assert all(mask[len(prompt) :])


@given(st.lists(messages, max_size=4))
@settings(max_examples=300, derandomize=True)
def test_ids_equal_those_of_the_rendered_text_but_for_two_exceptions(conversation: Conversation) -> None:
    assume(not any(token in message["content"] for message in conversation for token in CONTROL_TOKENS))
    assume(not any(m["role"] == "assistant" and re.match(r"\s*[\r\n]", m["content"]) for m in conversation))
    ids, _ = FAST.ids(chat.segments(conversation))
    assert ids == AS_LOADED.encode(chat.render(conversation), add_special_tokens=False).ids
