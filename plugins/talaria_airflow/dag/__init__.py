"""Make the DAGs: their wiring, what their tasks do, when they run, and which failures are tried again."""
