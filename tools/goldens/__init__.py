"""What `tools/golden.py` records of a tree and how two records are compared; works on trees before and after a move."""
