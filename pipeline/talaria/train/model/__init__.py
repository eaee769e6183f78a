"""The causal language model on packed input, its loss, and the memory that its activations take."""
