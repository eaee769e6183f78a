#!/usr/bin/env bash
# trl: the reference model of DPO, KTO, GRPO and RLOO is read from disk again; it is not the model that was passed.
#
# Versions: trl 1.16.0, transformers 5.23.0, torch 2.13.0 (CPU)
# Guess:    without ref_model the reference is a copy of the model as it is at the start, so that the first loss of DPO is log 2 = 0.693 and the
#           first rewards are 0.
# Seen:     it is loaded by the name or path in model.config, whatever the weights in memory are. After an SFT, a merge or an edit in the same
#           program the reference is the model before it: at a learning rate of 0 the rewards are not 0 and the loss is not 0.693. If the folder
#           was written over since, it is that one. Nothing is said; a model without a path raises an error.
# Effect:   the penalty pulls the answers back to the base model and the margins are wrong. Save the model and load it from there, or pass
#           ref_model=copy.deepcopy(model). Talaria's stages hand over folders.
source "$(dirname "$0")/install.sh" trl==1.16.0 transformers==5.23.0 torch==2.13.0 numpy
cat > run.py <<'PY'
import copy

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer, RLOOConfig, RLOOTrainer

letters = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.add_special_tokens(["<end>", "<pad>"])
processor = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")
torch.manual_seed(0)
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
Qwen3ForCausalLM(Qwen3Config(vocab_size=258, head_dim=16, eos_token_id=256, pad_token_id=257, **sizes)).save_pretrained("base")
PAIRS = Dataset.from_list([{"prompt": "2+2=", "chosen": "4", "rejected": "5"}, {"prompt": "3+3=", "chosen": "6", "rejected": "7"}])
MARKED = Dataset.from_list([{"prompt": "2+2=", "completion": answer, "label": answer == "4"} for answer in "45"])
COMMON = {
    "output_dir": "out", "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "learning_rate": 0.0, "max_steps": 1,
    "logging_steps": 1, "per_device_train_batch_size": 2, "disable_tqdm": True,
}  # fmt: skip


@torch.no_grad()
def tuned():
    """The model of the folder after a training in this program."""
    model = Qwen3ForCausalLM.from_pretrained("base")
    torch.manual_seed(1)
    for weight in model.parameters():
        weight.add_(0.5 * torch.randn_like(weight))
    return model


def first_step(ref_model=None):
    trainer = DPOTrainer(tuned(), ref_model, args=DPOConfig(**COMMON), train_dataset=PAIRS, processing_class=processor)
    trainer.train()
    return [trainer.state.log_history[0][name] for name in ("loss", "rewards/chosen", "rewards/rejected")]


def reward(completions, **_):
    return [0.0] * len(completions)


alone, copied = first_step(), first_step(copy.deepcopy(tuned()))
print("loss and rewards of the first step:", alone, "- with ref_model a copy:", copied)
assert abs(alone[0] - 0.6931) > 0.001 and min(map(abs, alone[1:])) > 0.01
assert abs(copied[0] - 0.6931) < 1e-4 and copied[1:] == [0.0, 0.0]
base = dict(Qwen3ForCausalLM.from_pretrained("base").named_parameters())
for trainer in (
    DPOTrainer(tuned(), args=DPOConfig(**COMMON), train_dataset=PAIRS, processing_class=processor),
    KTOTrainer(tuned(), args=KTOConfig(**COMMON), train_dataset=MARKED, processing_class=processor),
    GRPOTrainer(tuned(), reward, GRPOConfig(**COMMON, beta=0.1, num_generations=2), PAIRS, processing_class=processor),
    RLOOTrainer(tuned(), reward, RLOOConfig(**COMMON, beta=0.1, num_generations=2), PAIRS, processing_class=processor),
):
    read_again = all(torch.equal(weight, base[name]) for name, weight in trainer.ref_model.named_parameters())
    print(f"{type(trainer).__name__}: the reference is the folder's model: {read_again}")
    assert read_again
PY
py run.py 2>log.txt || { tail -5 log.txt; exit 1; }
