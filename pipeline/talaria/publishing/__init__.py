"""Give a registered model to others: a Hugging Face repository, or a folder of the same files."""
