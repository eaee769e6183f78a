"""Read a model folder with the transformers that is first on the path, and write what it makes of it.

    python read_folder.py FOLDER OUT [GGUF]

GGUF: the file of the folder to read instead of its weights, settings and tokenizer. Runs in versions 4 and 5; standard library,
torch and transformers only.
"""

import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = ["650841823 hello", "Grüße, 世界!  two  spaces\n\n\ttab", "<|im_start|>user\nHi<|im_end|>\n", "'tis Don't 12,345.67"]
CONVERSATIONS = [
    [{"role": "user", "content": "Say green"}],
    [
        {"role": "system", "content": "Be brief. <b>&\u2028"},
        {"role": "user", "content": " é\n"},
        {"role": "assistant", "content": "No.\n\n"},
        {"role": "user", "content": "Say blue"},
    ],
]


def main(folder, out, gguf=None):
    file = {"gguf_file": gguf} if gguf else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **file).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, **file)
    prompts = [tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) for turns in CONVERSATIONS]
    ids = torch.arange(3, 3 + 40)[None] % model.config.vocab_size
    with torch.no_grad():
        logits = model(ids).logits
        inputs = tokenizer(prompts[0], return_tensors="pt", add_special_tokens=False)
        answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    found = {
        "version": transformers.__version__,
        "prompts": prompts,
        "ids": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS + prompts],
        "logits": logits.flatten().tolist(),
        "answer": answer[0].tolist(),
        "ends": model.generation_config.eos_token_id,
    }
    with open(out, "w") as file:
        json.dump(found, file)


main(*sys.argv[1:])
