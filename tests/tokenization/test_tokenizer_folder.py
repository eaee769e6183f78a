"""Tokenizers that are not Qwen3's: the saved folder, as transformers loads it, gives the ids that were trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from talaria.common.errors import DataError
from talaria.config.data_settings import Tokenize
from talaria.tokenization.chatml import template
from talaria.tokenization.dataset import open_tokens
from talaria.tokenization.rendered.probe import answer_ends
from talaria.tokenization.rendered.prompt import end_ids, prompt_encoder
from talaria.tokenization.stage import tokenize
from talaria.tokenization.tokenizer import open_hugging_face
from talaria.tokenization.tokenizer_folder import save

from tests.support import qwen_tokenizer
from tests.support.conversations import assistant, system, user, write_parquet
from tests.support.tool_conversations import tool_rows
from tests.tokenization.chat_templates import FAMILIES, write_tokenizer

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
CONVERSATIONS = [
    [user("What is the weather in Oslo?"), assistant("It is 3 degrees.")],
    [system("Be brief."), user("650841823 + 1?"), assistant(" 650841824 "), user("天气?"), assistant("3 度。")],
]


def changed(small: Path, folder: Path, change: Callable[[dict[str, Any]], None], **settings: Any) -> Path:
    """A copy of the small tokenizer with its tokenizer.json changed."""
    folder.mkdir()
    content = json.loads((small / "tokenizer.json").read_text())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **settings}))
    return folder


def adds_bos(content: dict[str, Any]) -> None:
    bos = {"id": "<|endoftext|>", "type_id": 0}
    ids = next(token["id"] for token in content["added_tokens"] if token["content"] == bos["id"])
    single = [{"SpecialToken": bos}, {"Sequence": {"id": "A", "type_id": 0}}]
    known = {bos["id"]: {"id": bos["id"], "ids": [ids], "tokens": [bos["id"]]}}
    content["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": known}


def swallows_line_breaks(content: dict[str, Any]) -> None:
    for token in content["added_tokens"]:
        token["rstrip"] = token["content"] == "<|im_end|>"


def splits_digits_in_threes(content: dict[str, Any]) -> None:
    split = content["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    split["Regex"] = split["Regex"].replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def unchanged(content: dict[str, Any]) -> None:
    assert content


@pytest.mark.parametrize(
    ("change", "settings", "begins"),
    [
        (unchanged, {}, None),
        (adds_bos, {"bos_token": "<|endoftext|>"}, "<|endoftext|>"),
        (swallows_line_breaks, {}, None),
        (splits_digits_in_threes, {"tokenizer_class": "Qwen2Tokenizer"}, None),
    ],
)
@pytest.mark.parametrize("beside_config", [False, True], ids=["alone", "beside a qwen3 config.json"])
def test_the_saved_folder_loads_to_the_ids_that_were_trained(
    change: Any, settings: dict[str, Any], begins: str | None, beside_config: bool, small_tokenizer: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = changed(small_tokenizer, tmp_path / "tokenizer", change, **settings)
    parquet = write_parquet(tmp_path / "messages.parquet", CONVERSATIONS)
    tokenize(parquet, folder, tmp_path / "tokens", Tokenize())
    saved = tmp_path / "tokens" / "tokenizer"
    if beside_config:
        (saved / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    loaded = AutoTokenizer.from_pretrained(saved)
    tokens = open_tokens(tmp_path / "tokens")["train"]
    assert tokens is not None
    for row, conversation in enumerate(CONVERSATIONS):
        ids = tokens.gather([row])[0].tolist()
        assert loaded.apply_chat_template(conversation, return_dict=False) == ids
        prompt = loaded.apply_chat_template(conversation[:-1], add_generation_prompt=True, return_dict=False)
        assert ids[: len(prompt)] == prompt == prompt_encoder(saved)(conversation[:-1])
        assert loaded.convert_tokens_to_ids(begins or "<|im_start|>") == ids[0]


def test_a_row_without_messages_is_dropped_also_behind_a_beginning(small_tokenizer: Path, tmp_path: Path) -> None:
    folder = changed(small_tokenizer, tmp_path / "tokenizer", adds_bos, bos_token="<|endoftext|>")
    parquet = write_parquet(tmp_path / "messages.parquet", [None, [], CONVERSATIONS[0]])
    facts = tokenize(parquet, folder, tmp_path / "tokens", Tokenize())
    assert (facts["conversations"], facts["dropped"]["no_supervised_tokens"]) == ({"train": 1}, 2)


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_word_start_markers_are_those_of_the_whole_conversation(scheme: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    family = dataclasses.replace(FAMILIES["mistral"], special=CHATML_TOKENS, bos=None, eos="<|endoftext|>", metaspace=scheme)
    folder = write_tokenizer(family, tmp_path / "tokenizer")
    facts = tokenize(write_parquet(tmp_path / "m.parquet", CONVERSATIONS), folder, tmp_path / "tokens", Tokenize())
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokens" / "tokenizer")
    tokens = open_tokens(tmp_path / "tokens")["train"]
    assert tokens is not None
    for row, conversation in enumerate(CONVERSATIONS):
        assert loaded.apply_chat_template(conversation, return_dict=False) == tokens.gather([row])[0].tolist()
    assert facts["template"] == "chatml"


def test_the_saved_tokenizer_cuts_no_text(small_tokenizer: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    used = AutoTokenizer.from_pretrained(small_tokenizer)
    used(["What is the weather?", "Hi"], truncation=True, max_length=2, padding="max_length")
    used.save_pretrained(tmp_path / "used")
    save(tmp_path / "used", tmp_path / "saved", None)
    whole, read = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (small_tokenizer, tmp_path / "saved"))
    assert len(Tokenizer.from_file(str(tmp_path / "used" / "tokenizer.json")).encode("What is the weather?").ids) == 2
    assert read.encode("What is the weather?").ids == whole.encode("What is the weather?").ids
    assert read.to_str() == whole.to_str()


def test_answers_end_where_the_template_ends_them(tmp_path: Path) -> None:
    for name, ends in (("llama", ["<|eot_id|>"]), ("mistral", ["</s>"]), ("phi", ["<|end|>"]), ("smollm", ["<|im_end|>"])):
        folder = write_tokenizer(FAMILIES[name], tmp_path / name)
        tokenizer = open_hugging_face(folder / "tokenizer.json")
        assert answer_ends(folder, tokenizer) == ends
        assert end_ids(folder)[0] == tokenizer.token_to_id(ends[0])
    assert len(prompt_encoder(tmp_path / "llama")([user("Hi <|eot_id|>")])) > 10
    asked = open_hugging_face(tmp_path / "phi" / "tokenizer.json").token_to_id("<|user|>")
    assert prompt_encoder(tmp_path / "phi")([user("Hi")])[0] == asked


def test_a_prompt_holds_the_tools_and_calls_or_is_refused(small_tokenizer: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    row = tool_rows(20, parallel=False)[0]
    messages, tools = row["messages"], row["tools"]
    stored = [{**one, "tool_calls": json.dumps(one["tool_calls"])} if "tool_calls" in one else one for one in messages]
    assert any("tool_calls" in one for one in messages)
    folder = write_tokenizer(FAMILIES["llama"], tmp_path / "llama")
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"content": "", **one} for one in messages], tools=tools, add_generation_prompt=True, return_dict=False
    )
    assert prompt_encoder(folder)(stored, json.dumps(tools)) == expected
    with pytest.raises(DataError, match="does not render its tool"):
        prompt_encoder(write_tokenizer(FAMILIES["phi"], tmp_path / "phi"))([user("Hi")], json.dumps(tools))
    plain = tmp_path / "plain"
    save(small_tokenizer, plain, template())
    with pytest.raises(DataError, match="does not render tools"):
        prompt_encoder(plain)([user("Hi")], json.dumps(tools))
    with pytest.raises(DataError, match="does not render tool_calls"):
        prompt_encoder(plain)(stored)


def test_qwen3s_own_class_and_files_stay(tmp_path: Path) -> None:
    parquet = write_parquet(tmp_path / "messages.parquet", CONVERSATIONS)
    tokenize(parquet, qwen_tokenizer.tokenizer(), tmp_path / "tokens", Tokenize())
    saved = tmp_path / "tokens" / "tokenizer"
    assert json.loads((saved / "tokenizer_config.json").read_text())["tokenizer_class"] == "Qwen2Tokenizer"
    assert (saved / "tokenizer.json").read_bytes() == (qwen_tokenizer.tokenizer() / "tokenizer.json").read_bytes()


def test_several_templates_under_names_are_refused_for_own_and_no_matter_for_chatml(
    small_tokenizer: Path, tmp_path: Path
) -> None:
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    folder = changed(small_tokenizer, tmp_path / "tokenizer", unchanged, chat_template=named)
    parquet = write_parquet(tmp_path / "messages.parquet", CONVERSATIONS)
    tokenize(parquet, folder, tmp_path / "tokens", Tokenize())
    for tokenizer in (folder, tmp_path / "tokens" / "tokenizer"):
        with pytest.raises(DataError, match="has several chat templates; save the one to train as a file"):
            tokenize(parquet, tokenizer, tmp_path / "own", Tokenize(template="own"))
