"""Operators of the DAGs: a stage in a process of its own, a training on GPUs, and links from a task's page."""
