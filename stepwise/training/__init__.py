"""Training a small model and writing it in the formats that the backends read. Needs the extra `stepwise[train]`."""

from stepwise.training.export import export_gguf, export_lora_gguf

__all__ = ["export_gguf", "export_lora_gguf"]
