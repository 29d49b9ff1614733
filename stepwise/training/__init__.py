"""Training a small model and writing it in the formats that the backends read. Needs the extra `stepwise[train]`."""
