"""stepwise: work at the level of the step at which a small language model goes wrong.

Every name below is loaded when it is first used, so `import stepwise` costs nothing.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepwise import lab
    from stepwise.config import (
        BudgetConfig,
        CapsConfig,
        Config,
        CriticConfig,
        ModelConfig,
        ModelsConfig,
        RoutingConfig,
        SamplingConfig,
        ScorerConfig,
    )
    from stepwise.critics import ErrorLocalizer, InterventionProposer, StepJudge
    from stepwise.data.problems import load_problems
    from stepwise.errors import (
        BackendError,
        BudgetExceededError,
        CapabilityError,
        ConfigError,
        DataError,
        ExportError,
        GradingError,
        MissingDependencyError,
        PluginError,
        ScorerError,
        StepwiseError,
    )
    from stepwise.grading import Verdict, grade
    from stepwise.interventions.collection import collect
    from stepwise.models import load_backend
    from stepwise.models.base import Backend, Capabilities, Completion, Request
    from stepwise.models.budget import Ledger
    from stepwise.models.scorers import Scorer, load_scorer
    from stepwise.prompt import SolvePrompt
    from stepwise.report.notebook import traces_to_dataset, traces_to_frame
    from stepwise.rounds import LoopSettings, loop
    from stepwise.routing.calibration import calibrate
    from stepwise.routing.compare import compare
    from stepwise.routing.policies import Random, Threshold
    from stepwise.routing.policy import Escalate, Keep, Policy, Signal, View
    from stepwise.routing.router import StepRouter
    from stepwise.routing.saved import load_policy, save_policy
    from stepwise.serve.doors import lm, register_litellm
    from stepwise.steps import extract_answer, normalize_text, split_steps
    from stepwise.training.reinforce import grpo
    from stepwise.training.supervised import sft
    from stepwise.types import Intervention, Localization, Problem, Step, Trace, Usage

__version__ = "0.1.0"

_HOME = {
    "stepwise.models": "load_backend",
    "stepwise.models.base": "Backend Capabilities Completion Request",
    "stepwise.serve.doors": "lm register_litellm",
    "stepwise.models.budget": "Ledger",
    "stepwise.config": (
        "BudgetConfig CapsConfig Config CriticConfig ModelConfig ModelsConfig RoutingConfig SamplingConfig ScorerConfig"
    ),
    "stepwise.data.problems": "load_problems",
    "stepwise.errors": (
        "BackendError BudgetExceededError CapabilityError ConfigError DataError ExportError GradingError "
        "MissingDependencyError PluginError ScorerError StepwiseError"
    ),
    "stepwise.grading": "Verdict grade",
    "stepwise.critics": "ErrorLocalizer InterventionProposer StepJudge",
    "stepwise.prompt": "SolvePrompt",
    "stepwise.report.notebook": "traces_to_dataset traces_to_frame",
    "stepwise.interventions.collection": "collect",
    "stepwise.rounds": "LoopSettings loop",
    "stepwise.routing.calibration": "calibrate",
    "stepwise.routing.compare": "compare",
    "stepwise.routing.policies": "Random Threshold",
    "stepwise.routing.policy": "Escalate Keep Policy Signal View",
    "stepwise.routing.router": "StepRouter",
    "stepwise.routing.saved": "load_policy save_policy",
    "stepwise.training": "grpo sft",  # it says what to install where PyTorch is missing
    "stepwise.models.scorers": "Scorer load_scorer",
    "stepwise.steps": "extract_answer normalize_text split_steps",
    "stepwise.types": "Intervention Localization Problem Step Trace Usage",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}
_SUBPACKAGES = ("lab",)

__all__ = [
    "Backend",
    "BackendError",
    "BudgetConfig",
    "BudgetExceededError",
    "Capabilities",
    "CapabilityError",
    "CapsConfig",
    "Completion",
    "Config",
    "ConfigError",
    "CriticConfig",
    "DataError",
    "ErrorLocalizer",
    "Escalate",
    "ExportError",
    "GradingError",
    "Intervention",
    "InterventionProposer",
    "Keep",
    "Ledger",
    "Localization",
    "LoopSettings",
    "MissingDependencyError",
    "ModelConfig",
    "ModelsConfig",
    "PluginError",
    "Policy",
    "Problem",
    "Random",
    "Request",
    "RoutingConfig",
    "SamplingConfig",
    "Scorer",
    "ScorerConfig",
    "ScorerError",
    "Signal",
    "SolvePrompt",
    "Step",
    "StepJudge",
    "StepRouter",
    "StepwiseError",
    "Threshold",
    "Trace",
    "Usage",
    "Verdict",
    "View",
    "calibrate",
    "collect",
    "compare",
    "extract_answer",
    "grade",
    "grpo",
    "lab",
    "lm",
    "load_backend",
    "load_policy",
    "load_problems",
    "load_scorer",
    "loop",
    "normalize_text",
    "register_litellm",
    "save_policy",
    "sft",
    "split_steps",
    "traces_to_dataset",
    "traces_to_frame",
]


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"stepwise.{name}")
    if name not in _MODULE_OF:
        near = difflib.get_close_matches(name, __all__, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"module 'stepwise' has no attribute {name!r}{hint}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
