"""The encoding rule, on the real Qwen3 tokenizer: which ids, and which of them the loss counts."""

from __future__ import annotations

import jinja2
import numpy as np
import pyarrow as pa
import pytest
from talaria.common.errors import DataError
from talaria.tokenization import chatml as chat
from talaria.tokenization import encoder
from talaria.tokenization.encoder import TokenBatch, encode, flatten
from talaria.tokenization.loading import load
from talaria.tokenization.tokenizer import Tokenizer
from tokenizers import Tokenizer as HuggingFaceTokenizer

from tests.support import qwen_tokenizer
from tests.support.conversations import HANDWRITTEN, LINE_BREAK_FIRST, MESSAGES, Conversation, assistant, system, user

START, END, NEWLINE = 151644, 151645, 198


@pytest.fixture(scope="module", params=["fastokens", "tokenizers"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return load(qwen_tokenizer.tokenizer(), request.param)


@pytest.fixture(scope="module")
def hugging_face() -> HuggingFaceTokenizer:
    """As anybody else would load it: text that looks like a control token becomes one."""
    return HuggingFaceTokenizer.from_file(str(qwen_tokenizer.tokenizer() / "tokenizer.json"))


def encoded(
    conversations: list[Conversation], tokenizer: Tokenizer, kind: pa.DataType = MESSAGES, newline: bool = True
) -> TokenBatch:
    return encode(flatten(pa.array(conversations, kind), 0, "test"), tokenizer, newline)


def one(conversation: Conversation, tokenizer: Tokenizer, **options: bool) -> tuple[list[int], list[bool]]:
    batch = encoded([conversation], tokenizer, **options)
    return batch.ids.tolist(), batch.mask.tolist()


def test_ids_and_mask_written_out(tokenizer: Tokenizer) -> None:
    ids, mask = one([system("Be terse."), user("Hi"), assistant("Hello!")], tokenizer)
    assert ids == [
        *(START, 8948, NEWLINE, 3430, 50537, 13, END, NEWLINE),
        *(START, 872, NEWLINE, 13048, END, NEWLINE),
        *(START, 77091, NEWLINE, 9707, 0, END, NEWLINE),
    ]
    assert mask == [False] * (8 + 6 + 3) + [True] * 4


def test_without_the_line_break_after_the_answer(tokenizer: Tokenizer) -> None:
    _, mask = one([user("Hi"), assistant("Hello!")], tokenizer, newline=False)
    assert mask == [False] * (6 + 3) + [True] * 3 + [False]


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_rows_encoded_a_few_at_a_time_are_those_encoded_together(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    rows = flatten(pa.array([[], *HANDWRITTEN.values(), [], []], MESSAGES).slice(1), 7, "test")
    together = encode(rows, tokenizer, True)
    monkeypatch.setattr(encoder, "AT_ONCE", at_once)
    apart = encode(rows, tokenizer, True)
    for name in ("ids", "mask", "offsets", "rows", "supervised"):
        ours, theirs = getattr(apart, name), getattr(together, name)
        assert ours.dtype == theirs.dtype
        assert ours.tolist() == theirs.tolist(), name


@pytest.mark.parametrize("name", [name for name in HANDWRITTEN if name != "control text"])
def test_ids_equal_those_of_the_rendered_text(name: str, tokenizer: Tokenizer, hugging_face: HuggingFaceTokenizer) -> None:
    conversation = HANDWRITTEN[name]
    ids, _ = one(conversation, tokenizer)
    assert ids == hugging_face.encode(chat.render(conversation), add_special_tokens=False).ids


@pytest.mark.parametrize("name", LINE_BREAK_FIRST)
def test_an_answer_that_begins_with_a_line_break_is_encoded_as_generation_sees_it(
    name: str, tokenizer: Tokenizer, hugging_face: HuggingFaceTokenizer
) -> None:
    prompt, answer = LINE_BREAK_FIRST[name]
    ids, mask = one([prompt, answer], tokenizer)
    seen = hugging_face.encode(chat.render([prompt], add_generation_prompt=True), add_special_tokens=False).ids
    assert ids[: len(seen)] == seen
    assert not any(mask[: len(seen)])
    assert all(mask[len(seen) :])
    assert hugging_face.decode(ids[len(seen) :], skip_special_tokens=False) == answer["content"] + "<|im_end|>\n"
    assert ids != hugging_face.encode(chat.render([prompt, answer]), add_special_tokens=False).ids


@pytest.mark.parametrize("conversation", [*HANDWRITTEN.values(), *LINE_BREAK_FIRST.values()])
def test_the_prompt_of_every_answer_is_a_prefix(conversation: Conversation, tokenizer: Tokenizer) -> None:
    ids, _ = one(conversation, tokenizer)
    for number, message in enumerate(conversation):
        if message["role"] == "assistant":
            prompt, mask = tokenizer.ids(chat.prompt(conversation[:number]))
            assert ids[: len(prompt)] == prompt
            assert len(mask) == len(prompt)


@pytest.mark.parametrize("conversation", [*HANDWRITTEN.values(), *LINE_BREAK_FIRST.values()])
def test_text_never_becomes_a_control_token(
    conversation: Conversation, tokenizer: Tokenizer, hugging_face: HuggingFaceTokenizer
) -> None:
    ids, mask = one(conversation, tokenizer)
    answers = "".join(message["content"] + "<|im_end|>\n" for message in conversation if message["role"] == "assistant")
    supervised = [id for id, counts in zip(ids, mask, strict=True) if counts]
    assert ids.count(START) == ids.count(END) == len(conversation)
    assert hugging_face.decode(supervised, skip_special_tokens=False) == hugging_face.normalizer.normalize_str(answers)


def test_added_tokens_that_are_text_stay_tokens(tokenizer: Tokenizer) -> None:
    ids, mask = one(HANDWRITTEN["think"], tokenizer)
    assert ids.count(151667) == ids.count(151668) == 1
    assert mask[ids.index(151667)]


@pytest.mark.parametrize(
    ("field", "kind", "value", "counts"),
    [
        ("train", pa.bool_(), False, False),
        ("train", pa.bool_(), True, True),
        ("train", pa.bool_(), None, True),
        ("weight", pa.float64(), 0.0, False),
        ("weight", pa.float64(), 0.5, True),
        ("weight", pa.int64(), 0, False),
        ("weight", pa.null(), None, True),
        ("step_loss_mask", pa.int8(), 0, False),
        ("step_loss_mask", pa.int8(), 1, True),
        ("step_loss_mask", pa.int8(), None, True),
    ],
)
def test_a_switch_takes_a_turn_out_of_the_loss(
    field: str, kind: pa.DataType, value: object, counts: bool, tokenizer: Tokenizer
) -> None:
    conversation = [user("a", **{field: None}), assistant("b", **{field: value}), user("c"), assistant("d")]
    typed = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), (field, kind)]))
    batch = encoded([conversation], tokenizer, typed)
    plain_ids, plain_mask = one([user("a"), assistant("b"), user("c"), assistant("d")], tokenizer)
    first_answer = np.flatnonzero(np.array(plain_mask))[0]
    assert batch.ids.tolist() == plain_ids
    assert batch.mask[first_answer] == counts
    assert batch.mask[-1]
    assert tokenizer.ids(chat.segments(conversation)) == (batch.ids.tolist(), batch.mask.tolist())


def test_a_switch_that_is_no_number(tokenizer: Tokenizer) -> None:
    typed = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("weight", pa.string())]))
    with pytest.raises(DataError, match=r"test: messages.weight should be a boolean or a number, found string"):
        encoded([[assistant("b", weight="off")]], tokenizer, typed)


def test_a_message_without_content_is_named(tokenizer: Tokenizer) -> None:
    conversations = [[user("a"), assistant("b")], [], [user("a"), {"role": "assistant", "content": None}]]
    with pytest.raises(DataError, match=r"test, row 2: message 1 has no content"):
        encoded(conversations, tokenizer)


def test_the_template_renders_what_the_rule_encodes() -> None:
    template = jinja2.Environment(autoescape=False).from_string(chat.TEMPLATE)
    for conversation in (*HANDWRITTEN.values(), *LINE_BREAK_FIRST.values()):
        assert template.render(messages=conversation) == chat.render(conversation)
        for number in range(len(conversation)):
            prompt = template.render(messages=conversation[:number], add_generation_prompt=True)
            assert prompt == chat.render(conversation[:number], add_generation_prompt=True)
            assert template.render(messages=conversation).startswith(template.render(messages=conversation[:number]))
