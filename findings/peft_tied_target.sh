#!/usr/bin/env bash
# peft: an adapter on the head of a model with tied embeddings is another model after merge_and_unload.
#
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0 (CPU)
# Guess:    merge_and_unload gives the adapter's logits, to rounding, for every target; what cannot be merged is refused.
# Seen:     with target_modules=["lm_head"] the change is added to the one matrix that the embeddings use too, so the merged model reads its input
#           with other embeddings; with ["embed_tokens"] its head changes. All logits are others, and a saved and reloaded model has the same
#           fault. get_peft_model warns that this "can lead to complications" without ensure_weight_tying=True, and with it the merge is as wrong.
#           The merge says nothing. modules_to_save=["lm_head"] unties the two and is right.
# Effect:   the adapter's evaluation is not that of the model that is deployed. Compare logits before and after a merge. Talaria merges by
#           itself and refuses targets that share their weight.
source "$(dirname "$0")/install.sh" peft==0.21.2 transformers==5.23.0 torch==2.13.0 numpy
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
IDS = torch.arange(10)[None]


@torch.no_grad()
def difference(tied=True, **lora):
    """The largest difference between the logits of a trained adapter and of the model after the merge."""
    torch.manual_seed(0)
    base = Qwen3ForCausalLM(Qwen3Config(vocab_size=64, head_dim=16, tie_word_embeddings=tied, **SIZES))
    model = get_peft_model(base, LoraConfig(**lora)).eval()
    for weight in model.parameters():
        if weight.requires_grad:
            weight.add_(torch.randn_like(weight) * 0.1)
    trained = model(IDS).logits
    found = float((model.merge_and_unload()(IDS).logits - trained).abs().max())
    print(f"{lora}, {'tied' if tied else 'not tied'}: logits differ by {found:.1e}, the largest is {float(trained.abs().max()):.1f}")
    return found


for wrong in ("lm_head", "embed_tokens"):
    assert difference(target_modules=[wrong]) > 0.5
    assert difference(target_modules=[wrong], ensure_weight_tying=True) > 0.5
    assert difference(target_modules=[wrong], tied=False) < 1e-4
assert difference(target_modules=["q_proj"]) < 1e-4
assert difference(target_modules=["q_proj"], modules_to_save=["lm_head"]) < 1e-4
PY
