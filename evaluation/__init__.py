"""Scores of a model, and the comparison of many runs."""
