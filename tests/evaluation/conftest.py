"""Tiny runs."""

from run_fixtures import random_run, random_steps, teacher, trained

__all__ = ["random_run", "random_steps", "teacher", "trained"]
