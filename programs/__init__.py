"""Runnable programs, one screen each.

`python -m programs.NAME` in a checkout, `stepwise NAME` once installed.
"""
