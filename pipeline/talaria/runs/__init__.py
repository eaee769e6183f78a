"""The training folder as a contract: the names of its files, and reading trainings while they run.

`folder` has the names and the writer; `catalog` finds the runs of a store, `summary` says how one is doing at the cost of a few
reads, `history` follows its whole course, `columns` holds the numbers and thins them for drawing. Readers never lock and import
no torch, so looking never disturbs a training.
"""
