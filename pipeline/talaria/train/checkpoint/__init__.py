"""Sharded checkpoints, written beside the training, whole or recognisably not."""
