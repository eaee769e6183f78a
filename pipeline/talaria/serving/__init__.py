"""`talaria serve`: a registered model behind OpenAI's chat completions, in batches, following its alias."""
