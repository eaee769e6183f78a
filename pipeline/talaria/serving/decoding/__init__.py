"""A model that writes many answers at the same time."""
