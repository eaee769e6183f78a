"""Fast code for the decoder layer, each piece with a plain twin that says what it computes."""
