"""PackedSequences conversations through real (tiny) Hugging Face models: exact, isolated, complete."""

import pytest
import torch
from talaria.common.errors import DataError
from talaria.train.kernels.decoder_layer import Saved
from talaria.train.model.activation_memory import ActivationMemory
from talaria.train.model.causal_lm import ModelOptions, describe, layers, sum_loss
from talaria.train.model.loading import load_model
from talaria.train.model.lora import LoraOptions, add_adapters
from talaria.train.model.loss import CHUNK
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.train.tiny_models import VOCAB, batch_of, conversations, save_tiny

FP32 = ModelOptions("fp32")


@pytest.fixture(params=["qwen3", "llama", "qwen2"])
def family(request):
    return request.param


@pytest.fixture
def folder(tmp_path, family):
    return save_tiny(tmp_path / family, family)


def test_packed_logits_equal_solo_logits_of_the_plain_model(folder):
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    texts = conversations([5, 1, 17, 9])
    with torch.no_grad():
        packed = load_model(folder, FP32, "cpu").logits(batch_of(texts)).split([len(text) for text in texts])
        for text, got in zip(texts, packed, strict=True):
            solo = plain(torch.from_numpy(text).long()[None]).logits[0]
            torch.testing.assert_close(got, solo, rtol=1e-4, atol=1e-5)


def test_perturbing_one_conversation_leaves_the_others_bit_equal(folder):
    model = load_model(folder, FP32, "cpu")
    texts = conversations([6, 11, 4])
    changed = [texts[0], (texts[1] + 1) % VOCAB, texts[2]]
    with torch.no_grad():
        before, after = (model.logits(batch_of(t)).split([6, 11, 4]) for t in (texts, changed))
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2], after[2])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("per_sample", [False, True])
def test_loss_and_gradients_equal_hugging_faces_own(folder, per_sample):
    from transformers import AutoModelForCausalLM

    texts = conversations([8, 13, 5])
    batch = batch_of(texts, per_sample=per_sample)
    model = load_model(folder, FP32, "cpu")
    loss = sum_loss(model, batch)
    loss.backward()

    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)
    plain_loss = torch.zeros(())
    edges = batch.cu_seqlens.tolist()
    for text, start, end in zip(texts, edges, edges[1:], strict=False):
        labels = torch.full((len(text),), -100)
        mine = (batch.positions >= start) & (batch.positions < end)
        labels[batch.positions[mine] - start + 1] = batch.targets[mine]
        mean = plain(torch.from_numpy(text).long()[None], labels=labels[None]).loss
        plain_loss = plain_loss + mean * (1 if per_sample else int(mine.sum()))
    plain_loss.backward()

    torch.testing.assert_close(loss, plain_loss, rtol=1e-5, atol=1e-5)
    for (name, got), want in zip(model.hf.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("mode", ["auto", "selective", "full"])
def test_recomputing_activations_changes_nothing(folder, mode):
    batch = batch_of(conversations([8, 13]))
    grads = []
    for setting in ("off", mode):
        model = load_model(folder, ModelOptions("fp32", activation_checkpointing=setting), "cpu")
        sum_loss(model, batch).backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("room", [0, 1, 35, 36, 99, 100, 101, 219, 220, 500])
def test_layers_keep_as_much_as_fits(room):
    """Ten layers of 1, 10 or 22 bytes: nothing better would fit."""
    saved_per_layer = ActivationMemory(layers=10, saved_min=1, saved_default=10, saved_all=22, logits=0).saved_per_layer(
        room + 2 * 22, tokens=1, targets=1
    )
    bytes_of = {Saved.INPUT: 1, Saved.DEFAULT: 10, Saved.ALL: 22}
    used = sum(bytes_of[keep] for keep in saved_per_layer)
    assert len(saved_per_layer) == 10
    assert used <= max(room, 10)
    if Saved.INPUT in saved_per_layer:
        assert Saved.ALL not in saved_per_layer
        assert used + 9 > room
    elif Saved.DEFAULT in saved_per_layer:
        assert used + 12 > room


QWEN3_4B = ActivationMemory(layers=36, saved_min=5_120, saved_default=69_632, saved_all=99_328, logits=303_872)


def test_a_micro_batch_is_as_large_as_can_be_without_computing_a_layer_twice():
    room = 11_700_000_000  # what fp32 masters leave of 80 GB
    tokens = QWEN3_4B.packed_tokens(9216, room)
    assert 3584 < tokens < 9216
    assert Saved.INPUT not in QWEN3_4B.saved_per_layer(room, tokens, CHUNK)
    assert Saved.INPUT in QWEN3_4B.saved_per_layer(room, tokens + 1, CHUNK)


@pytest.mark.parametrize(("room", "tokens"), [(-(10**9), 3584), (0, 3584), (4 * 10**9, 3584), (40 * 10**9, 9216)])
def test_a_micro_batch_keeps_the_gpu_busy_and_never_exceeds_its_limit(room, tokens):
    assert QWEN3_4B.packed_tokens(9216, room) == tokens
    assert QWEN3_4B.packed_tokens(1000, room) == 1000


def test_no_supervised_target_gives_zero_loss_and_zero_gradients(folder):
    model = load_model(folder, FP32, "cpu")
    loss = sum_loss(model, batch_of(conversations([8, 3]), share=0.0))
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is not None and torch.count_nonzero(p.grad) == 0 for p in model.parameters())


def test_tied_weights_stay_one_parameter(tmp_path):
    model = load_model(save_tiny(tmp_path), FP32, "cpu")
    assert model.core.lm_head.weight is model.core.model.embed_tokens.weight
    untied = load_model(save_tiny(tmp_path / "untied", tie_word_embeddings=False), FP32, "cpu")
    sum_loss(untied, batch_of(conversations([8, 3]))).backward()
    assert untied.core.lm_head.weight is not untied.core.model.embed_tokens.weight
    assert untied.core.lm_head.weight.grad.abs().sum() > 0
    assert untied.core.model.embed_tokens.weight.grad.abs().sum() > 0


def test_adapters_train_and_the_base_stays(folder):
    model = load_model(folder, ModelOptions("fp32", lora=LoraOptions(4, 32.0, 0.0, "all-linear")), "cpu")
    sum_loss(model, batch_of(conversations([8, 13]))).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained
    assert all("lora_" in name for name in trained)
    assert len(layers(model)) == 3


def test_adapters_are_drawn_on_the_host_whatever_the_model_is_on(folder, monkeypatch):
    """A GPU refuses the host's generator; the same adapters on every device."""
    drawn = []
    draw = nn.init.kaiming_uniform_

    def watched(tensor, *args, generator=None, **how):
        if generator is not None:
            drawn.append((tensor.device.type, generator.device.type))
        return draw(tensor, *args, generator=generator, **how)

    monkeypatch.setattr(nn.init, "kaiming_uniform_", watched)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        add_adapters(model, LoraOptions(4, 32.0, 0.0, "all-linear"))
    assert drawn
    assert set(drawn) == {("cpu", "cpu")}


def test_unknown_family_is_refused(tmp_path):
    folder = save_tiny(tmp_path / "gpt2", "gpt2", n_embd=32, n_head=4, n_layer=1)
    with pytest.raises(DataError, match=r"gpt2.*choose another base model"):
        load_model(folder, FP32, "cpu")


def test_start_up_says_which_kernels_run(tmp_path):
    line = describe(load_model(save_tiny(tmp_path / "a", "qwen3"), FP32, "cpu"))
    assert "layers: fused" in line
    assert "attention: plain PyTorch (no GPU)" in line
    with_dropout = LoraOptions(rank=4, alpha=8, dropout=0.1, targets="all-linear")
    dropout = describe(load_model(tmp_path / "a", ModelOptions("fp32", lora=with_dropout), "cpu"))
    assert "transformers' own, as train.lora.dropout is set" in dropout
    chosen = describe(load_model(tmp_path / "a", ModelOptions("fp32", kernels="plain"), "cpu"))
    assert "as train.kernels is plain" in chosen
