"""Hear from the scheduler how runs end."""
