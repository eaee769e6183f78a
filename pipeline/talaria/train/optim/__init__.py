"""AdamW with bf16 or fp32 masters, and the learning-rate schedule."""
