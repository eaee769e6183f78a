"""What cannot be trained is refused by the launcher, in one sentence, before any rank is started or as soon as it is known."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from talaria.base_model import stage as base_stage
from talaria.base_model.families import FAMILIES, refusal
from talaria.common.errors import DataError, UserError
from talaria.common.files import file_digest, read_object
from talaria.config.train_settings import Train
from talaria.launch import input_check
from talaria.launch import stage as launch
from talaria.launch.accelerate_command import Machine, command
from talaria.launch.launcher_chatter import LauncherChatter
from talaria.process.supervisor import Stop
from talaria.runs import identity
from talaria.runs.folder import RunFolder
from talaria.runs.identity import noted_identity, run_identity
from talaria.store.store import Store
from talaria.workflow.run_all import run_all

from tests.support import tiny_pipeline

WEIGHTS = "model.safetensors"


def settings(path: Path, **changes: Any) -> None:
    """Change a JSON file in place; None removes a setting."""
    tree = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in tree.items() if value is not None}))


def pickled(model: Path) -> None:
    (model / WEIGHTS).rename(model / "pytorch_model.bin")


def cut_off(model: Path) -> None:
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data[: len(data) // 2])


def sharded_with_one_missing(model: Path) -> None:
    names = list(load_file(model / WEIGHTS))
    half = dict.fromkeys(names, "model-00001-of-00002.safetensors")
    half |= dict.fromkeys(names[:3], "model-00002-of-00002.safetensors")
    (model / WEIGHTS).rename(model / "model-00001-of-00002.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": half}))


def fp8_weights(model: Path) -> None:
    import torch

    tensors = load_file(model / WEIGHTS)
    name = next(name for name in tensors if "q_proj" in name)
    save_file(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}, model / WEIGHTS)


def quantised(method: str) -> Callable[[Path], None]:
    return lambda model: settings(model / "config.json", quantization_config={"quant_method": method})


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda model: settings(model / "config.json", **changes)


def another_tokenizer(model: Path) -> None:
    path = model / "tokenizer.json"
    tree = json.loads(path.read_text())
    vocabulary = tree["model"]["vocab"]
    one, other = [token for token in vocabulary if len(token) == 2][:2]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(tree))


def empty_generation_config(model: Path) -> None:
    (model / "generation_config.json").write_text("")


UNUSABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickled weights": (pickled, "weights are pickled.*save_pretrained"),
    "no weights": (lambda model: (model / WEIGHTS).unlink(), "has no weights"),
    "cut off": (cut_off, "no whole safetensors file.*fetch it again"),
    "a shard missing": (sharded_with_one_missing, "model-00002-of-00002.safetensors of its weights is missing"),
    "unknown family": (config(model_type="gpt2"), "model_type 'gpt2' is not one of .*choose another base model"),
    "own code": (config(model_type="mymodel", auto_map={"AutoModelForCausalLM": "x.Y"}), "needs code of its own"),
    "empty config": (lambda model: (model / "config.json").write_text("{}"), "holds no settings"),
    "cut off config": (lambda model: (model / "config.json").write_text('{"model_type": "qw'), "not readable as JSON"),
    "no model type": (config(model_type=None), "names no model_type"),
    "vocabulary": (config(vocab_size=77), "vocab_size 77, but the embedding has"),
    "no vocabulary": (config(vocab_size=None), "no vocab_size"),
    "dtype auto": (config(torch_dtype="auto"), "gives 'auto' as the dtype"),
    "dtype float8": (config(dtype="float8_e4m3fn"), "gives 'float8_e4m3fn' as the dtype"),
    "fp8": (quantised("fp8"), r"quantised \(fp8\)"),
    "gptq": (quantised("gptq"), r"quantised \(gptq\)"),
    "awq": (quantised("awq"), r"quantised \(awq\)"),
    "bitsandbytes": (quantised("bitsandbytes"), r"quantised \(bitsandbytes\)"),
    "fp8 weights": (fp8_weights, "is stored as F8_E4M3; dequantise"),
    "dropout": (config(attention_dropout=0.1), "attention_dropout is not supported"),
    "linear attention": (config(layer_types=["full_attention", "linear_attention"]), "'linear_attention' carry a state"),
    "capped scores": (config(attn_logit_softcapping=50.0), "attn_logit_softcapping"),
}
UNFIT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another tokenizer": (another_tokenizer, "made with another tokenizer.*vocabularies differ"),
    "empty generation_config": (empty_generation_config, r"generation_config\.json: not readable"),
}


@pytest.fixture
def no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*args: Any, **how: Any) -> None:
        raise AssertionError("a rank was started")

    monkeypatch.setattr(launch.supervisor, "start", start)


def ranks_are(monkeypatch: pytest.MonkeyPatch, rank: Callable[..., int]) -> None:
    """Let `rank` stand for the ranks: it is called with what follows them, and returns their exit code."""
    monkeypatch.setattr(launch.supervisor, "start", lambda *args, **how: None)
    monkeypatch.setattr(launch.supervisor, "follow", rank)


@pytest.mark.parametrize("case", UNUSABLE | UNFIT)
def test_a_base_that_cannot_be_trained_is_one_sentence(launches, no_ranks: None, case: str) -> None:
    (launches.root / "model" / "manifest.json").unlink()
    change, sentence = (UNUSABLE | UNFIT)[case]
    change(launches.root / "model")
    with pytest.raises(UserError, match=sentence) as refused:
        launches.start()
    assert "\n" not in str(refused.value)
    assert not launches.output.exists()


@pytest.mark.parametrize("case", UNUSABLE)
def test_the_base_stage_gives_the_same_answer(inputs: dict[str, Path], tmp_path: Path, case: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(inputs["model"], model)
    change, sentence = UNUSABLE[case]
    change(model)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=sentence):
        base_stage.run(tiny_pipeline.config(base={"source": "local", "path": str(model)}), {}, tmp_path / "out")


@pytest.mark.parametrize("case", ["unknown family", "pickled weights", "fp8"])
def test_talaria_run_refuses_before_it_makes_anything(inputs: dict[str, Path], tmp_path: Path, case: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(inputs["model"], model)
    change, sentence = UNUSABLE[case]
    change(model)
    store = Store(tmp_path / "store")
    with pytest.raises(UserError, match=sentence):
        run_all(tiny_pipeline.config(base={"source": "local", "path": str(model)}), store, on_line=pytest.fail)
    assert not any((tmp_path / "store").glob("download/*"))


@pytest.mark.parametrize("name", ["config.json", "model", "checkpoints"])
def test_a_folder_of_others_is_not_written_over(launches, no_ranks: None, name: str) -> None:
    theirs = launches.output / name / "own" if "." not in name else launches.output / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    with pytest.raises(UserError, match=rf"{name} there is not of a training by Talaria, and would be replaced; choose another"):
        launches.start()
    assert theirs.read_text() == "mine"
    assert [path.name for path in launches.output.iterdir() if not path.name.startswith(".")] == [name]


@pytest.mark.usefixtures("quick_launcher")
def test_a_launch_that_was_killed_before_it_had_a_status_goes_on(launches) -> None:
    launches.output.mkdir()
    (launches.output / "config.json").write_text('{"name": "small", "train": {}}')
    assert launches.start()["steps"] == 3


def test_tokens_and_base_without_a_tokenizer(launches, no_ranks: None) -> None:
    shutil.rmtree(launches.root / "tokens" / "tokenizer")
    (launches.root / "model" / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=rf"^{launches.root}/model/tokenizer\.json: no such file"):
        launches.start()


def test_generation_settings_that_cannot_be_read(launches, no_ranks: None) -> None:
    path = launches.root / "model" / "generation_config.json"
    path.unlink()  # it may be a link into a store
    path.write_text("")
    with pytest.raises(DataError, match=rf"^{path}: not readable as JSON"):
        launches.start()


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows(launches, no_ranks: None) -> None:
    model = launches.root / "model"
    tensors = load_file(model / WEIGHTS)
    rows = 300
    save_file({name: t[:rows].clone() if "embed_tokens" in name else t for name, t in tensors.items()}, model / WEIGHTS)
    settings(model / "config.json", vocab_size=rows)
    with pytest.raises(DataError, match=rf"^{model}: the tokenizer has \d+ tokens but the model embeds 300"):
        launches.start()


@pytest.mark.parametrize("name", ["tokens/train/data-00000-of-00001.arrow", "model/model.safetensors", "model/tokenizer.json"])
def test_a_file_that_was_damaged_after_it_was_made(launches, no_ranks: None, name: str) -> None:
    """By the disk: its size and time are as they were when an earlier launch noted its digest."""
    path = launches.root / name
    launches.output.mkdir()
    run_identity(launches.config(), launches.root / "tokens", launches.root / "model", launches.output)
    before, data = path.stat(), path.read_bytes()
    damaged = data.replace(b" ", b"\t", 1) if path.suffix == ".json" else data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
    path.write_bytes(damaged)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match=f"{path.name}: is not what manifest.json beside it says.*talaria store verify --repair"):
        launches.start()


def test_a_launch_reads_its_inputs_once_and_its_ranks_rely_on_that(launches, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(identity, "file_digest", lambda path: [hashed.append(path), file_digest(path)][1])
    folders = (launches.root / "tokens", launches.root / "model")

    def rank(*args: Any, **how: Any) -> int:
        seen = run_identity(launches.config(), *folders, launches.output)
        RunFolder(launches.output).set_status("failed", kind="user", reason=seen)
        return 2

    ranks_are(monkeypatch, rank)
    for _ in range(2):  # a resumed training too
        hashed.clear()
        with pytest.raises(UserError):
            launches.start()
        listed = [folder / name for folder in folders for name in read_object(folder / "manifest.json")["files"]]
        assert sorted(hashed) == sorted(listed)


@pytest.fixture
def slow_reading(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Inputs are not read before the event is set, as if they were large."""
    may_read = threading.Event()
    monkeypatch.setattr(input_check, "_FIRST", 0.0)
    monkeypatch.setattr(identity, "file_digest", lambda path: [may_read.wait(60), file_digest(path)][1])
    return may_read


def test_ranks_start_beside_the_reading_of_large_inputs_and_wait_for_it(
    launches, monkeypatch: pytest.MonkeyPatch, slow_reading: threading.Event
) -> None:
    inputs = launches.config(), launches.root / "tokens", launches.root / "model"
    seen: list[str | None] = []

    def rank(*args: Any, **how: Any) -> int:
        seen.append(noted_identity(*inputs, launches.output))
        slow_reading.set()
        seen.append(run_identity(*inputs, launches.output))
        RunFolder(launches.output).set_status("failed", kind="user", reason="through")
        return 2

    ranks_are(monkeypatch, rank)
    with pytest.raises(UserError, match="through"):
        launches.start()
    assert seen == [None, noted_identity(*inputs, launches.output)]


def test_ranks_are_ended_where_a_large_input_turns_out_damaged(
    launches, monkeypatch: pytest.MonkeyPatch, slow_reading: threading.Event
) -> None:
    path = launches.root / "model" / WEIGHTS
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    stop, ended = Stop(), threading.Event()
    monkeypatch.setattr(stop, "end_now", ended.set)

    def rank(*args: Any, on_look: Callable[[], None], **how: Any) -> int:
        slow_reading.set()
        deadline = time.monotonic() + 60
        while not ended.wait(0.01) and time.monotonic() < deadline:
            on_look()
        return -9

    ranks_are(monkeypatch, rank)
    with pytest.raises(DataError, match="is not what"):
        launches.start(stop=stop)
    assert RunFolder(launches.output).status()["kind"] == "user"


def test_a_file_that_is_missing(launches, no_ranks: None) -> None:
    (launches.root / "tokens" / "validation" / "state.json").unlink()
    with pytest.raises(DataError, match=r"state\.json: is missing"):
        launches.start()


def test_a_file_that_cannot_be_read(launches, no_ranks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(identity, "file_digest", broken)
    with pytest.raises(DataError, match=r"cannot be read \(Input/output error\); make it readable, or the folder again"):
        launches.start()


@pytest.mark.parametrize(("cores", "what"), [(2, "2 cores and no GPU, which can run at most 8 ranks"), (10**6, "GiB of memory")])
def test_more_ranks_than_the_machine_bears(monkeypatch: pytest.MonkeyPatch, cores: int, what: str) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores))
    monkeypatch.setattr(os, "sysconf", lambda name: 2**18)
    with pytest.raises(UserError, match=f"num_processes is 1000, but this machine has .*{what}.*lower it"):
        command(Train(num_processes=1000), Path("t"), Path("m"), Path("o"), Machine(), gpus=0)


def test_what_other_launchers_say_does_not_reach_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "LOCAL_RANK": "0"}
    pod |= {"PET_NNODES": "2", "SLURM_NTASKS": "8", "TORCHELASTIC_RUN_ID": "x", "ACCELERATE_NUM_PROCESSES": "4"}
    for name, value in pod.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    _, env = command(Train(), Path("t"), Path("m"), Path("o"), Machine(env={"PET_MINE": "1"}), gpus=1)
    assert not pod.keys() & env.keys()
    assert (env["NCCL_DEBUG"], env["ACCELERATE_USE_CPU"], env["PET_MINE"]) == ("INFO", "true", "1")
    assert env["PYTHONSAFEPATH"] == "1"
    assert os.environ["WORLD_SIZE"] == "2"


CHATTER = """\
rank 0: the sentence.
E1127 06:12:01.123456 77 torch/distributed/elastic/multiprocessing/api.py:984] failed (exitcode: 2) local_rank: 0
Traceback (most recent call last):
  File "/x/accelerate/commands/launch.py", line 1, in <module>
    main()
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
talaria.train FAILED
------------------------------------------------------------
Root Cause (first observed failure):
============================================================
after it"""
CRASH = """\
Traceback (most recent call last):
  File "/x/talaria/train/trainer.py", line 1, in run
ValueError: cannot reshape"""


@pytest.mark.parametrize(("text", "shown"), [(CHATTER, ["rank 0: the sentence.", "after it"]), (CRASH, CRASH.split("\n"))])
def test_the_launchers_own_traceback_is_not_shown(text: str, shown: list[str]) -> None:
    chatter = LauncherChatter()
    assert [line for given in text.split("\n") for line in chatter.lines(given)] + chatter.rest() == shown


def test_every_causal_language_model_of_transformers_is_proven_or_refused() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert set(FAMILIES) <= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        why = refusal({"model_type": model_type, "vocab_size": 100})
        assert (why is None) == (model_type in FAMILIES), why
        assert why is None or ("choose another base model" in why and "\n" not in why)
