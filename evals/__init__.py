"""Benchmarks that print a table and write JSON: `python -m evals.NAME` in a checkout."""
