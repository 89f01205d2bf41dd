"""Tiny runs."""

from run_fixtures import random_run, teacher, trained

__all__ = ["random_run", "teacher", "trained"]
