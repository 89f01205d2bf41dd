"""Tiny runs."""

from run_fixtures import teacher, trained

__all__ = ["teacher", "trained"]
