"""The stage base: the model to start from, and what a valid Hugging Face folder is."""
