"""Tasks: prompts of one's own, answers from any model, and a verdict on each. Nothing here imports PyTorch but model_answers."""
