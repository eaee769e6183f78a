"""Talaria: from a chat data set and a base model to a registered, promoted model. docs/architecture.md draws the folders."""
