"""Operators of the DAGs."""
