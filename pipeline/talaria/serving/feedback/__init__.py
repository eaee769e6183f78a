"""Requests as MLflow traces, what people say of the answers, and the training data that comes of it."""
