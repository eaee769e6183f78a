"""Reading trainings while they run: what the Airflow page and the terminal commands show.

`catalog` finds the runs of a store, `summarize` says how one is doing at the cost of a few reads, `training` follows its
whole history, `journal` holds the columns and thins them for drawing. Nothing here writes, locks or imports torch, so
looking never disturbs a training.
"""
