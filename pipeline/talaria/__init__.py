"""Talaria: from a chat data set and a base model to a registered, promoted model. docs/architecture.md draws the folders."""

__version__ = "0.1.0"
