"""Training a small model and writing it in the formats that the backends read. Needs the extra `stepwise[train]`.

`sft` trains on datasets of interventions, `dpo` on pairs of an intervention and the wrong step, `grpo` by reinforcement
with credit per step, `train_scorer` a process reward model from labelled steps; all return the directory of an adapter,
in PEFT's layout and as GGUF, with its card.

    adapter = sw.training.sft("out/intervene/dataset.jsonl", sw.Config.lab(), "out/sft")
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from stepwise.errors import MissingDependencyError
from stepwise.training.export.gguf import export_gguf, export_lora_gguf

if TYPE_CHECKING:
    from stepwise.training.preference import dpo
    from stepwise.training.reinforce import grpo
    from stepwise.training.scorer import train_scorer
    from stepwise.training.supervised import sft

_METHODS = {"dpo": "preference", "grpo": "reinforce", "sft": "supervised", "train_scorer": "scorer"}
__all__ = ["dpo", "export_gguf", "export_lora_gguf", "grpo", "sft", "train_scorer"]


def __getattr__(name: str) -> Any:
    """A method when it is first asked for: PyTorch takes seconds to load, and reading adapters does without it."""
    if name not in _METHODS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_training()
    return getattr(import_module(f"{__name__}.{_METHODS[name]}"), name)


def require_training() -> None:
    """Raise MissingDependencyError without the packages of the extra `stepwise[train]`.

    Example:
        require_training()  # raises where torch, transformers or peft is missing
    """
    missing = [name for name in ("torch", "transformers", "peft") if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f'training needs {", ".join(missing)}; pip install "stepwise[train]"')
