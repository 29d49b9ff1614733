"""Data that methods read and write: problems, examples, first errors, ProcessBench columns."""
