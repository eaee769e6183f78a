"""The base stage: a model folder that opens, stops on <|im_end|>, renders plain ChatML, and is the same for the same settings."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from talaria.base_model import stage as base
from talaria.common.errors import DataError
from talaria.config.load import parse
from talaria.config.schema import Config
from talaria.tokenization import chatml as chat
from talaria.tokenization.loading import load
from talaria.tokenization.rendered.call_format import ToolCall, call_format
from talaria.tokenization.rendered.prompt import prompt_encoder
from talaria.tokenization.tokenizer import open_hugging_face
from talaria.tokenization.tokenizer_folder import ORIGINAL_TEMPLATE_FILE, TEMPLATE_FILE, find, own_template, save

from tests.base_model import hub
from tests.support import qwen_tokenizer
from tests.support.conversations import HANDWRITTEN, LINE_BREAK_FIRST, numbered, user, write_parquet

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def config(**settings: Any) -> Config:
    return parse({"name": "test", "base": {"shape": SHAPE, **settings}}, "test")


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convert")
    write_parquet(folder / "messages.parquet", [*HANDWRITTEN.values(), *numbered(200)])
    return folder


def make(out_dir: Path, convert: Path | None = None, **settings: Any) -> dict[str, Any]:
    out_dir.mkdir()
    return base.run(config(**settings), {"convert": convert} if convert else {}, out_dir)


@pytest.fixture(scope="module")
def scratch(convert: Path) -> Path:
    make(convert / "scratch", convert, source="random", vocab_size=500)
    return convert / "scratch"


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_random_is_the_same_for_the_same_settings_in_another_process(scratch: Path, convert: Path, tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from talaria.base_model import stage as base
from talaria.config.load import parse
config = parse({{"name": "test", "base": {{"shape": {SHAPE}, "source": "random", "vocab_size": 500}}}}, "test")
base.run(config, {{"convert": Path({str(convert)!r})}}, Path({str(tmp_path)!r}))
"""
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert digests(tmp_path) == digests(scratch)


def test_another_seed_gives_other_weights_and_the_same_tokenizer(scratch: Path, convert: Path, tmp_path: Path) -> None:
    make(tmp_path / "other", convert, source="random", vocab_size=500, seed=1)
    changed = {name for name, value in digests(tmp_path / "other").items() if digests(scratch)[name] != value}
    assert changed == {"model.safetensors"}


def test_transformers_opens_it(scratch: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    model = AutoModelForCausalLM.from_pretrained(scratch)
    tokenizer = AutoTokenizer.from_pretrained(scratch)
    end, end_of_text = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generation_config.eos_token_id == [end, end_of_text]
    assert model.config.vocab_size == 512 > len(tokenizer) == 500
    ids = tokenizer.apply_chat_template([user("Hi")], add_generation_prompt=True, return_tensors="pt", return_dict=False)
    loss = model(ids, labels=ids).loss.item()
    assert abs(loss - np.log(512)) < 0.1  # knows nothing yet
    assert torch.isfinite(model(ids).logits).all()
    ask = pipeline("text-generation", model=model, tokenizer=tokenizer, max_new_tokens=8)
    answers = {str(ask("Hi", return_full_text=False)) for _ in range(3)}
    assert len(answers) == 1, "a pipeline draws from the nearly even probabilities, unless it is told that the model is greedy"
    weights = load_file(scratch / "model.safetensors")
    assert set(weights) == {name for name in model.state_dict() if name != "lm_head.weight"}
    assert abs(weights["model.layers.0.mlp.up_proj.weight"].std() - 0.02) < 2e-3


@pytest.mark.parametrize("conversation", [*HANDWRITTEN.values(), *LINE_BREAK_FIRST.values()])
def test_the_saved_template_renders_plain_chatml(conversation: list[dict[str, str]], tokenizer: Any) -> None:
    assert tokenizer.apply_chat_template(conversation, tokenize=False) == chat.render(conversation)
    prompt = tokenizer.apply_chat_template(conversation[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == chat.render(conversation[:1], add_generation_prompt=True)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3's own tokenizer with a small random model."""
    folder = tmp_path_factory.mktemp("real") / "model"
    facts = make(folder, source="random", tokenizer=str(qwen_tokenizer.tokenizer()))
    assert facts["eos_token_id"] == [151645, 151643]
    assert facts["vocab_size"] == 151680
    return folder


@pytest.fixture(scope="module")
def tokenizer(real: Path) -> Any:
    """As anybody else would open it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(real)


def test_a_template_of_its_own_is_kept_beside(real: Path, tmp_path: Path) -> None:
    own = json.loads((qwen_tokenizer.tokenizer() / "tokenizer_config.json").read_text())["chat_template"]
    assert (real / "chat_template.original.jinja").read_text() == own
    assert "chat_template" not in json.loads((real / "tokenizer_config.json").read_text())
    make(tmp_path / "again", source="local", path=str(real))
    assert digests(tmp_path / "again") == digests(real)


def test_the_template_of_a_tokenizer_from_scratch_has_tools(scratch: Path, tmp_path: Path) -> None:
    save(scratch, tmp_path / "own", own_template(scratch))
    found = call_format(tmp_path / "own")
    assert found is not None
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 2?"}]
    call = json.dumps([{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "ü<"}}}])
    answered = [{"role": "assistant", "content": "", "tool_calls": call}, {"role": "tool", "content": "3"}]
    encode, opened = prompt_encoder(tmp_path / "own"), open_hugging_face(tmp_path / "own" / "tokenizer.json")
    text = opened.decode(encode([*asked, *answered], json.dumps([tool])), skip_special_tokens=False)
    assert "Be brief." in text
    assert json.dumps(tool["function"]) in text
    (written,) = re.findall(r"<\|im_start\|>assistant\n(<tool_call>.*?)<\|im_end\|>", text, re.DOTALL)
    assert found.read(written) == ("", [ToolCall("add", {"a": 1, "b": "ü<"})])
    assert opened.decode(encode(asked), skip_special_tokens=False) == chat.render(asked, add_generation_prompt=True), (
        "without tools it is ChatML"
    )


def test_local_links_the_weights_and_pins_every_file(scratch: Path, tmp_path: Path) -> None:
    facts = make(tmp_path / "local", source="local", path=str(scratch))
    assert (tmp_path / "local" / "model.safetensors").samefile(scratch / "model.safetensors")
    assert facts["parameters"] == sum(array.size for array in load_file(scratch / "model.safetensors").values())
    settings = config(source="local", path=str(scratch))
    before = base.fingerprint(settings)
    assert before["model.safetensors"] == digests(scratch)["model.safetensors"]
    assert base.fingerprint(settings) == before


def copy_of(folder: Path, target: Path, *without: str) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        if path.name not in without:
            (target / path.name).write_bytes(path.read_bytes())
    return target


def test_the_fingerprint_follows_the_content(scratch: Path, tmp_path: Path) -> None:
    folder = copy_of(scratch, tmp_path / "copy")
    settings = config(source="local", path=str(folder))
    before = base.fingerprint(settings)
    save_file({name: array + 1 for name, array in load_file(folder / "model.safetensors").items()}, folder / "model.safetensors")
    assert base.fingerprint(settings) != before
    with_tokenizer = config(source="random", tokenizer=str(folder))
    names = {"tokenizer.json", "tokenizer_config.json", TEMPLATE_FILE, ORIGINAL_TEMPLATE_FILE}
    assert set(base.fingerprint(with_tokenizer)) == names
    assert set(base.fingerprint(config(source="random"))) == {"template"}


def test_generation_settings_of_the_model_are_kept(scratch: Path, tmp_path: Path) -> None:
    folder = copy_of(scratch, tmp_path / "copy")
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "eos_token_id": 1}))
    make(tmp_path / "out", source="local", path=str(folder))
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["temperature"] == 0.6
    assert "do_sample" not in written
    assert len(written["eos_token_id"]) == 2
    assert 1 not in written["eos_token_id"]
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 1


def test_what_is_no_model_folder_is_refused(scratch: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        make(tmp_path / "a", source="local", path=str(tmp_path / "nowhere"))
    pickled = copy_of(scratch, tmp_path / "pickled", "model.safetensors")
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(DataError, match=r"pickled: its weights are pickled.*; save the model with save_pretrained"):
        make(tmp_path / "b", source="local", path=str(pickled))
    with pytest.raises(DataError, match=r"not a model folder \(no config.json\)"):
        make(tmp_path / "c", source="local", path=str(copy_of(scratch, tmp_path / "bare", "config.json")))
    with pytest.raises(DataError, match=r"tokenizer.json: no such file"):
        make(tmp_path / "d", source="local", path=str(copy_of(scratch, tmp_path / "mute", "tokenizer.json")))


def test_a_tokenizer_too_large_for_the_model_is_refused(scratch: Path, tmp_path: Path) -> None:
    folder = copy_of(scratch, tmp_path / "copy")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "vocab_size": 499}))
    weights = load_file(folder / "model.safetensors")
    embedding = "model.embed_tokens.weight"
    save_file({**weights, embedding: weights[embedding][:499].copy()}, folder / "model.safetensors")
    with pytest.raises(DataError, match="has 500 tokens but the model embeds 499"):
        make(tmp_path / "out", source="local", path=str(folder))


def without_chatml(scratch: Path, folder: Path) -> Path:
    """As Llama's: no <|im_start|>."""
    text = (scratch / "tokenizer.json").read_text()
    folder.mkdir()
    (folder / "tokenizer.json").write_text(text.replace("<|im_start|>", "<|start_header_id|>"))
    return folder


def test_a_tokenizer_that_knows_no_chatml_is_refused(scratch: Path, tmp_path: Path) -> None:
    folder = without_chatml(scratch, tmp_path / "llama")
    with pytest.raises(DataError, match=r"<\|im_start\|> is not among its special tokens"):
        load(folder)
    with pytest.raises(DataError, match=r"<\|im_start\|> is not among its special tokens"):
        make(tmp_path / "out", source="random", tokenizer=str(folder))


def test_a_broken_or_missing_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer.json: not a tokenizer that the tokenizers library can read"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"\./nowhere: no such tokenizer folder"):
        find("./nowhere")


HUB = """
import json, sys
from pathlib import Path
from talaria.base_model import stage as base
from talaria.config.load import parse
from talaria.common.errors import UserError
config = parse({"name": "test", "base": {"source": "hub", **json.loads(sys.argv[1])}}, "test")
try:
    print(json.dumps([base.fingerprint(config), base.run(config, {}, Path(sys.argv[2]))]))
except UserError as error:
    sys.exit(str(error))
"""


def from_hub(settings: dict[str, str], out_dir: Path, address: str, cache: Path, **environment: str) -> tuple[Any, str]:
    out_dir.mkdir(exist_ok=True)
    names = {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HUB, json.dumps(settings), str(out_dir)],
        env={**os.environ, **names, **environment},
        capture_output=True,
        text=True,
    )
    return (json.loads(done.stdout) if done.returncode == 0 else None), done.stderr.strip().splitlines()[
        -1
    ] if done.stderr else ""


def test_hub_takes_safetensors_and_json_at_a_commit_and_later_works_offline(scratch: Path, tmp_path: Path) -> None:
    folder = copy_of(scratch, tmp_path / "repository")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04 a pickle")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    with hub.serve(folder) as (address, log):
        found, _ = from_hub({"repo": hub.REPO}, tmp_path / "out", address, tmp_path / "cache", HF_TOKEN="hf_secret")
    fingerprint, facts = found
    assert fingerprint == {"commit": hub.COMMIT}
    assert facts["commit"] == hub.COMMIT
    assert digests(tmp_path / "out") == digests(scratch)
    assert not [line for line in log if "pytorch_model.bin" in line or "onnx" in line]
    assert all("Bearer hf_secret" in line for line in log if hub.REPO in line)
    again, _ = from_hub({"repo": hub.REPO}, tmp_path / "off", address, tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert again == found
    assert digests(tmp_path / "off") == digests(scratch)


@pytest.mark.parametrize(
    ("settings", "environment", "sentence"),
    [
        ({"repo": hub.GATED}, {}, "someone/gated: gated; accept its terms at {address}/someone/gated and set HF_TOKEN"),
        ({"repo": "someone/nothing"}, {}, "someone/nothing: no such model at {address}, or it is private: check the name"),
        ({"repo": hub.REPO, "revision": "gone"}, {}, "someone/model: has no revision 'gone'; see {address}/someone/model"),
        ({"repo": "a/b/c"}, {}, "'a/b/c' is not a name on the hub; it should look like owner/name."),
        ({"repo": hub.REPO}, {"HF_HUB_OFFLINE": "1"}, "someone/model@main: HF_HUB_OFFLINE is set and the files are not all in"),
        ({"repo": hub.REPO}, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "someone/model@main: http://127.0.0.1:9 cannot be reached"),
    ],
)
def test_what_goes_wrong_with_the_hub_is_one_sentence(
    settings: dict[str, str], environment: dict[str, str], sentence: str, scratch: Path, tmp_path: Path
) -> None:
    with hub.serve(scratch) as (address, _):
        found, error = from_hub(settings, tmp_path / "out", address, tmp_path / "cache", **environment)
    assert found is None
    assert error.startswith(sentence.format(address=address))
    assert list((tmp_path / "out").iterdir()) == []
