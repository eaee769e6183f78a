"""`talaria`: the pipeline on the command line."""

from pipeline.cli import models, runs, stages
from pipeline.cli.app import main

__all__ = ["main", "models", "runs", "stages"]
