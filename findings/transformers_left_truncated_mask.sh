#!/usr/bin/env bash
# transformers: where the truncation cuts into a first answer, no answer at all is marked.
#
# Versions: transformers 5.23.0, jinja2 3.1.6
# Guess:    with truncation_side="left", return_assistant_tokens_mask marks the answers that are left.
# Seen:     as soon as the cut hides the first character of one answer, the mask of the whole row is 0, though a later answer is complete.
#           On the right side the mask is right.
# Effect:   long conversations, cut at their beginning to keep the last answer, train nothing, and nobody says so.
#           Talaria marks answers by itself, and drops and counts rows without one.
source "$(dirname "$0")/install.sh" transformers==5.23.0 jinja2==3.1.6
py - <<'PY'
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
tokenizer.train_from_iterator([], trainers.BpeTrainer(special_tokens=["<|im_start|>", "<|im_end|>"], initial_alphabet=alphabet))
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
fast.chat_template = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
)
CHAT = [
    {"role": "user", "content": "one?"}, {"role": "assistant", "content": "the first answer"},
    {"role": "user", "content": "two?"}, {"role": "assistant", "content": "the second answer"},
]


def marked(length, side):
    """The text that the mask marks."""
    fast.truncation_side = side
    row = fast.apply_chat_template(
        CHAT, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, truncation=length is not None, max_length=length
    )
    text = fast.decode([id for id, counts in zip(row["input_ids"], row["assistant_masks"], strict=True) if counts])
    print(f"{length} tokens, from the {side}: {len(row['input_ids'])} tokens, marked {text!r}")
    return text


first, second = "the first answer<|im_end|>", "the second answer<|im_end|>"
everything = len(fast.apply_chat_template(CHAT, tokenize=True)["input_ids"])
assert marked(None, "left") == first + second
assert marked(everything - 5, "left") == first + second
assert marked(everything - 25, "left") == ""
assert marked(40, "left") == ""
assert marked(40, "right") == first
PY
