"""tokenize.template: own and a file: ids as apply_chat_template gives them, masks exact, or the row is refused by name."""

from __future__ import annotations

import datetime
import json
import re
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from talaria.common.errors import DataError
from talaria.config.data_settings import Tokenize
from talaria.tokenization.dataset import open_tokens
from talaria.tokenization.stage import tokenize
from talaria.tokenization.tokenizer_folder import own_template

from tests.support import qwen_tokenizer
from tests.support.conversations import LINE_BREAK_FIRST, assistant, numbered, system, user, write_parquet
from tests.support.tool_conversations import tool_rows, write_rows
from tests.tokenization.chat_templates import FAMILIES, write_tokenizer

Row = dict[str, Any]
ROWS = 300


def run(tmp_path: Path, tokenizer: Path, rows: Sequence[Row], **options: Any) -> tuple[list[tuple[list[int], list[bool]]], Row]:
    """Ids and mask of each row that was kept, and the facts."""
    parquet = write_rows(tmp_path / "messages.parquet", [{"tools": None, **row} for row in rows])
    facts = tokenize(parquet, tokenizer, tmp_path / "tokens", Tokenize(**{"template": "own", **options}))
    tokens = open_tokens(tmp_path / "tokens")["train"]
    assert tokens is not None
    found = [tokens.gather([index])[:2] for index in range(len(tokens))]
    return [(ids.tolist(), mask.tolist()) for ids, mask in found], facts


def opened(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def as_openai(row: Row) -> list[Row]:
    """Null content beside a call is empty."""
    return [{"content": "", **message} for message in row["messages"]]


def expected_ids(tokenizer: Any, row: Row) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(as_openai(row), tools=row.get("tools"), return_dict=False)
    return ids


def supervised_texts(tokenizer: Any, ids: list[int], mask: list[bool]) -> list[str]:
    """The text of each unbroken supervised stretch."""
    texts: list[list[int]] = []
    for number, (id, counts) in enumerate(zip(ids, mask, strict=True)):
        if counts:
            if not number or not mask[number - 1]:
                texts.append([])
            texts[-1].append(id)
    return [text_of(tokenizer, text) for text in texts]


def text_of(tokenizer: Any, ids: list[int]) -> str:
    """The tokens' text; SentencePiece's decoder would strip a space that a stretch begins with."""
    pieces = tokenizer.convert_ids_to_tokens(ids)
    if not any("▁" in piece or piece.startswith("<0x") for piece in pieces):
        return str(tokenizer.decode(ids, skip_special_tokens=False))
    data = (bytes([int(p[3:5], 16)]) if re.fullmatch(r"<0x..>", p) else p.replace("▁", " ").encode() for p in pieces)
    return b"".join(data).decode()


def qwen3_answers(row: Row) -> list[str]:
    """What Qwen3's template has a model produce, written down again: reasoning only after the last question."""
    messages = row["messages"]
    last_question = max(number for number, message in enumerate(messages) if message["role"] == "user")
    answers = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        reasoning, calls = message.get("reasoning_content", ""), message.get("tool_calls", [])
        thinks = number > last_question and (number == len(messages) - 1 or reasoning)
        text = f"<think>\n{reasoning}\n</think>\n\n" if thinks else ""
        text += message.get("content", "")
        rendered = [json.dumps(call["function"], ensure_ascii=False) for call in calls]
        text += "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in rendered)
        answers.append(f"{text}<|im_end|>\n")
    return answers


@cache
def qwen3() -> Any:
    """The real tokenizer in transformers, which takes seconds to open."""
    return opened(qwen_tokenizer.tokenizer())


@pytest.fixture(scope="module")
def small_qwen3(small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3's own template on a tokenizer of its structure that opens at once."""
    folder = tmp_path_factory.mktemp("small") / "qwen3"
    shutil.copytree(small_tokenizer, folder)
    (folder / "chat_template.jinja").write_text(own_template(qwen_tokenizer.tokenizer()) or "", encoding="utf-8")
    return folder


@pytest.mark.parametrize("reasoning", [False, True], ids=["tools", "tools and reasoning"])
def test_qwen3_renders_calls_and_reasoning_as_transformers_does(reasoning: bool, tmp_path: Path) -> None:
    rows = tool_rows(ROWS, reasoning=reasoning)
    found, facts = run(tmp_path, qwen_tokenizer.tokenizer(), rows)
    base, saved = qwen3(), opened(tmp_path / "tokens" / "tokenizer")
    assert facts["conversations"] == {"train": ROWS}
    for row, (ids, mask) in zip(rows, found, strict=True):
        assert ids == expected_ids(base, row)
        assert supervised_texts(base, ids, mask) == qwen3_answers(row)
    assert [ids for ids, _ in found[::10]] == [expected_ids(saved, row) for row in rows[::10]]
    assert facts["oddities"]["empty_answers"] == 0
    assert bool(facts["oddities"].get("reasoning_left_out")) == reasoning


@pytest.fixture(scope="module")
def family_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {name: write_tokenizer(family, folder / name) for name, family in FAMILIES.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_six_families_by_their_own_templates(name: str, family_tokenizers: dict[str, Path], tmp_path: Path) -> None:
    family, folder = FAMILIES[name], family_tokenizers[name]
    rows: list[Row] = [{"messages": conversation} for conversation in numbered(40)]
    rows += [
        {"messages": [system("Be brief."), user("天气?"), assistant("3 度。"), user("Rain?"), assistant("No, it is not.")]},
        {"messages": [user("What is  this?"), assistant("  white space  \n\n inside"), user("Hm\n"), assistant("Yes")]},
    ]
    if family.tools:
        rows += tool_rows(40, parallel=name != "llama")
    found, facts = run(tmp_path, folder, rows)
    base, saved = opened(folder), opened(tmp_path / "tokens" / "tokenizer")
    assert len(found) == len(rows)
    for row, (ids, mask) in zip(rows, found, strict=True):
        assert ids == expected_ids(base, row) == expected_ids(saved, row)
        stretches = supervised_texts(saved, ids, mask)
        answers = [message for message in row["messages"] if message["role"] == "assistant"]
        assert len(stretches) == len(answers)
        for text, answer in zip(stretches, answers, strict=True):
            if "tool_calls" in answer:
                assert answer["tool_calls"][0]["function"]["name"] in text
                assert text.endswith(family.end)
            else:
                assert text.strip() == (answer["content"].strip() + family.end).strip()
    assert facts.get("begins_with", "").startswith(family.bos or "")
    assert not facts.get("begins_with", "").endswith(("user\n", "user<|end_header_id|>\n\n", "[INST]", "[INST] "))
    assert ("date" in facts) == (name == "llama")


def refused(tmp_path: Path, tokenizer: Path, rows: Sequence[Row], **options: Any) -> str:
    with pytest.raises(DataError) as error:
        run(tmp_path, tokenizer, rows, **options)
    return str(error.value)


def test_plain_chatml_refuses_or_counts_what_it_does_not_render(small_tokenizer: Path, tmp_path: Path) -> None:
    plain = {"messages": [user("Hi"), assistant("Hello!")]}
    calls = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    with_call = {"messages": [user("Go"), {"role": "assistant", "content": "", "tool_calls": calls}]}
    with_tools = {"messages": [user("Go"), assistant("No")], "tools": calls}
    with_reasoning = {"messages": [user("1+1?"), assistant("2", reasoning_content="one and one")]}
    for row, field in ((with_call, "tool_calls"), (with_tools, "tools"), (with_reasoning, "reasoning_content")):
        sentence = refused(tmp_path, small_tokenizer, [plain, row], template="chatml")
        assert f"row 1: has {field}, which tokenize.template: chatml does not render; set tokenize.template to own" in sentence
        assert not (tmp_path / "tokens").exists()
    rows = [plain, with_call, with_tools, with_reasoning]
    found, facts = run(tmp_path, small_tokenizer, rows, template="chatml", on_bad_row="drop")
    assert (len(found), facts["dropped"]["not_rendered"]) == (1, 3)
    _, facts = run(tmp_path, small_tokenizer, [plain, with_reasoning], template="chatml", reasoning="drop")
    assert facts["conversations"] == {"train": 2}


def test_an_answer_in_an_unknown_field_is_counted_by_name(small_tokenizer: Path, tmp_path: Path) -> None:
    conversation = [user("1+1?"), assistant("2", thinking="one and one", id="m1"), user("+1?"), assistant("3", thinking=None)]
    kind = pa.list_(pa.struct([(name, pa.string()) for name in ("role", "content", "thinking", "id")]))
    parquet = write_parquet(tmp_path / "messages.parquet", [conversation], kind)
    facts = tokenize(parquet, small_tokenizer, tmp_path / "tokens", Tokenize())
    assert facts["ignored_fields"] == {"id": 1, "thinking": 1}


def family(tmp_path: Path, name: str) -> Path:
    return write_tokenizer(FAMILIES[name], tmp_path / "tokenizer")


CALL = {"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
CALLS: Row = {
    "messages": [
        user("Weather?"),
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "3", "name": "get_weather"},
        assistant("3 degrees"),
    ]
}


@pytest.mark.parametrize(
    ("name", "row", "sentence"),
    [
        ("phi", CALLS, "row 0: message 1: the chat template does not render its call of get_weather"),
        ("phi", {"messages": [user("Hi"), assistant("Hello")], "tools": [CALL]}, "does not render its tool get_weather"),
        ("phi", {"messages": [{"role": "developer", "content": "Be kind."}, user("Hi"), assistant("Hello")]}, "role developer"),
        (
            "phi",
            {"messages": [user("2?"), assistant("2", reasoning_content="Hm")]},
            "has reasoning_content, which the",
        ),
        ("gemma", {"messages": [user("a"), user("b"), assistant("c")]}, "raises an error: Conversation roles must alternate"),
        ("llama", {"messages": [user("?"), {"role": "assistant", "content": "", "tool_calls": [CALL] * 2}]}, "single tool-calls"),
        ("llama", {"messages": [user("?"), {"role": "assistant", "content": None}]}, "message 1 has no content"),
        ("olmo", {"messages": [user("a \ufdd0 b"), assistant("c")]}, "holds the noncharacter U+FDD0"),
        ("mistral", {"messages": [user("a </s> b"), assistant("c")]}, "holds </s>, which this tokenizer cannot keep text"),
    ],
)
def test_what_cannot_be_rendered_whole_stops_the_run_or_is_dropped_by_name(
    name: str, row: Row, sentence: str, tmp_path: Path
) -> None:
    folder = family(tmp_path, name)
    assert sentence in refused(tmp_path, folder, [row])
    plain = {"messages": [user("What is the weather?"), assistant("Some rain.")]}
    found, facts = run(tmp_path, folder, [plain, row], on_bad_row="drop")
    assert len(found) == 1
    assert sum(facts["dropped"].values()) == 1


SMOLLM_PLAIN = """{%- set END = '<|im_end|>\\n' %}{%- set ASKS = '<|im_start|>assistant\\n' %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- else %}{{- '<|im_start|>assistant\\n' + message.content + END }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- ASKS }}{%- endif %}"""


def test_masks_that_no_template_makes_exact_are_refused(tmp_path: Path) -> None:
    turns: Row = {"messages": [user("a"), assistant("b")]}
    folder, given = family(tmp_path, "smollm"), tmp_path / "given.jinja"
    given.write_text(SMOLLM_PLAIN.replace("message.content + END", "message.content"))
    sentence = refused(tmp_path, folder, [turns], template=str(given))
    assert "message 1: the chat template ends this answer with no token of its own" in sentence
    given.write_text(SMOLLM_PLAIN.replace("{{- ASKS", "{{- ASKS + '<think>\\n'"))
    sentence = refused(tmp_path, folder, [turns], template=str(given))
    assert "message 1: the chat template asks for an answer with '<|im_start|>assistant\\n<think>\\n' and writes" in sentence


def test_a_given_file_is_the_template_that_is_trained_and_saved(tmp_path: Path) -> None:
    folder = family(tmp_path, "smollm")
    given = tmp_path / "given.jinja"
    given.write_text(SMOLLM_PLAIN)
    row: Row = {"messages": [user("Hi"), assistant("Hello")]}
    ((ids, mask),), _ = run(tmp_path, folder, [row], template=str(given))
    saved = opened(tmp_path / "tokens" / "tokenizer")
    assert saved.decode(ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    assert supervised_texts(saved, ids, mask) == ["Hello<|im_end|>\n"]
    assert (tmp_path / "tokens" / "tokenizer" / "chat_template.jinja").read_text() == SMOLLM_PLAIN
    assert "cannot be read" in refused(tmp_path, folder, [row], template="nowhere.jinja")
    given.write_text("{% if %}")
    assert "not a chat template that Jinja can read" in refused(tmp_path, folder, [row], template=str(given))


def test_a_template_cannot_leave_the_sandbox(tmp_path: Path) -> None:
    given = tmp_path / "given.jinja"
    row: Row = {"messages": [user("Hi"), assistant("Hello")]}
    for attack in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ messages[0].update({}) }}"):
        given.write_text(attack + SMOLLM_PLAIN)
        sentence = refused(tmp_path, family(tmp_path / str(len(attack)), "smollm"), [row], template=str(given))
        assert "unsafe" in sentence, attack


def test_reasoning_is_trained_masked_or_taken_out(small_qwen3: Path, tmp_path: Path) -> None:
    row: Row = {"messages": [user("2 + 2?"), assistant("4", reasoning_content="Two and two.")]}
    inline: Row = {"messages": [user("2 + 2?"), assistant("<think>\nTwo and two.\n</think>\n\n4")]}
    tokenizer = opened(small_qwen3)
    thought = "<think>\nTwo and two.\n</think>\n\n"
    for reasoning, said, rendered in (
        ("train", f"{thought}4<|im_end|>\n", True),
        ("mask", "4<|im_end|>\n", True),
        ("drop", "<think>\n\n</think>\n\n4<|im_end|>\n", False),
    ):
        found, _ = run(tmp_path, small_qwen3, [row, inline], reasoning=reasoning)
        (ids, mask), (inline_ids, inline_mask) = found
        assert supervised_texts(tokenizer, ids, mask) == [said]
        assert ("Two and two." in tokenizer.decode(ids)) == rendered
        assert supervised_texts(tokenizer, inline_ids, inline_mask) == [
            f"{thought}4<|im_end|>\n" if reasoning != "mask" else said
        ]


def test_marks_of_tools_that_the_text_has_already_are_counted(small_qwen3: Path, tmp_path: Path) -> None:
    """As Hermes function calling has them, which was made for plain ChatML."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    answered = {"role": "tool", "content": "<tool_response>\n3\n</tool_response>"}
    rows: list[Row] = [
        {"messages": [system("<tools>[]</tools>"), user("Hi"), assistant("Yes")], "tools": tools},
        {"messages": [user("Hi"), assistant("Wait"), answered, assistant("Yes")], "tools": tools},
        {"messages": [system("<tools>[]</tools>"), user("Hi"), assistant("<tool_response>")], "tools": None},
        {"messages": [user("Hi"), assistant("Wait"), answered | {"content": "3"}, assistant("Yes")], "tools": tools},
    ]
    assert run(tmp_path, small_qwen3, rows)[1]["oddities"]["tool_marks_twice"] == 2


def test_loss_switches_and_control_text_under_its_own_template(small_qwen3: Path, tmp_path: Path) -> None:
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("train", pa.bool_())]))
    conversation = [user("A"), assistant("B", train=False), user("<|im_end|>?"), assistant("<|im_start|>user\nis text")]
    parquet = write_parquet(tmp_path / "messages.parquet", [conversation, *LINE_BREAK_FIRST.values()], kind)
    facts = tokenize(parquet, small_qwen3, tmp_path / "tokens", Tokenize(template="own"))
    tokens = open_tokens(tmp_path / "tokens")["train"]
    assert tokens is not None
    ids, mask = (values.tolist() for values in tokens.gather([0])[:2])
    tokenizer = opened(small_qwen3)
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 4
    assert supervised_texts(tokenizer, ids, mask) == ["<think>\n\n</think>\n\n<|im_start|>user\nis text<|im_end|>\n"]
    assert facts["oddities"]["control_token_text_rows"] == 1


def test_the_date_is_the_day_of_the_run_or_as_set(tmp_path: Path) -> None:
    folder = family(tmp_path, "llama")
    row: Row = {"messages": [user("Hi"), assistant("Hello")]}
    ((ids, _),), facts = run(tmp_path, folder, [row], template_date=datetime.date(2024, 7, 26))
    assert facts["date"] == "2024-07-26"
    assert "Today Date: 26 Jul 2024" in facts["begins_with"]
    assert "Today Date: 26 Jul 2024" in opened(folder).decode(ids)
