"""Processes that must end: the reaper beneath which a training runs, and its parent's side. It imports no other folder."""
