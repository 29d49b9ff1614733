"""Training a small model and writing it in the formats that the backends read. Needs the extra `stepwise[train]`.

`sft` trains on datasets of interventions, `dpo` on pairs of an intervention and the wrong step, `grpo` by reinforcement
with credit per step; all return the directory of an adapter, in PEFT's layout and as GGUF, with its card.
"""

from stepwise.export.gguf import export_gguf, export_lora_gguf
from stepwise.training.preference import dpo
from stepwise.training.reinforce import grpo
from stepwise.training.supervised import sft

__all__ = ["dpo", "export_gguf", "export_lora_gguf", "grpo", "sft"]
