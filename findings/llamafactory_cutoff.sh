#!/usr/bin/env bash
# LLaMA-Factory: a row above cutoff_len loses the end of a question and the words that open the answer, and is trained.
#
# Versions: llamafactory 0.9.5, transformers 5.6.0, torch 2.14.1
# Guess:    a conversation that is too long is cut at its end, dropped, or loses its first turns.
# Seen:     each pair of question and answer is cut by itself, the question at its end. What is cut there is what it asks, its end token and
#           the header of the answer: "...<|im_start|>user\nquestion twanswer two<|im_end|>" is what is trained, where the row was
#           24 tokens too long. A long text with the question behind it loses the question. Nothing is said.
# Effect:   with the default of 2,048 tokens and documents as prompts, answers are trained without what they answer and in a place where no
#           server asks for one. Drop longer rows before. Talaria drops and counts them, or cuts after an answer (`tokenize.on_long`).
source "$(dirname "$0")/install.sh" llamafactory==0.9.5 torch==2.14.1 torchvision==0.29.1 torchaudio==2.11.0
py - 2>log.txt <<'PY' | grep -v "^\[\|^$" || { tail -5 log.txt; exit 1; }
from llamafactory.data.converter import SharegptDatasetConverter
from llamafactory.data.parser import DatasetAttr
from llamafactory.data.processor import SupervisedDatasetProcessor
from llamafactory.data.template import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
special = ["<pad>", "<|im_start|>", "<|im_end|>"]
bpe.train_from_iterator([], trainers.BpeTrainer(special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<|im_end|>")  # a token for each byte


def encoded(cutoff, *turns):
    """The text of a conversation as LLaMA-Factory encodes it for training, and the part of it in the loss."""
    settings = DataArguments(template="chatml", cutoff_len=cutoff)
    template = get_template_and_fix_tokenizer(tokenizer, settings)
    row = {"conversations": [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(turns)]}
    aligned = SharegptDatasetConverter(DatasetAttr("file", "rows", formatting="sharegpt"), settings)(row)
    processor = SupervisedDatasetProcessor(template=template, tokenizer=tokenizer, processor=None, data_args=settings)
    made = processor.preprocess_dataset({name: [value] for name, value in aligned.items()})
    (ids,), (labels,) = made["input_ids"], made["labels"]
    return tokenizer.decode(ids), tokenizer.decode([label for label in labels if label != -100])


HEADER = "<|im_end|>\n<|im_start|>assistant\n"
turns = ("question one", "answer one", "question two", "answer two")
whole, answers = encoded(2048, *turns)
length = len(tokenizer.encode(whole))
cut, trained = encoded(length - len(tokenizer.encode("o" + HEADER)), *turns)
print(f"cut: {cut!r}, in the loss {trained!r}")
assert trained == answers == "answer one<|im_end|>\nanswer two<|im_end|>\n"
assert cut.endswith("<|im_start|>user\nquestion twanswer two<|im_end|>\n") and HEADER + "answer one" in cut
document, trained = encoded(120, "A long text. " * 10 + "What is it about?", "Nothing.")
print(f"document: {document!r}, in the loss {trained!r}")
assert "What" not in document and trained == "Nothing.<|im_end|>\n" and HEADER not in document
cut, trained = encoded(length - 1, *turns)
print(f"one token less: {cut[-45:]!r}")
assert trained == answers and cut.endswith("<|im_start|>assistantanswer two<|im_end|>\n")
PY
