"""Process reward models with one base class: the probability that each step is right, given all before it.

| kind in `[scorer]` | class | model | where the score is read |
|---|---|---|---|
| label_token | `LabelTokenScorer` | llamacpp/FILE.gguf, openai/NAME with api_base | two label tokens, see `layouts` |
| classifier | `ClassifierScorer` | transformers/DIRECTORY | classification head at a marker |
| pooling | `PoolingScorer` | vllm/NAME with api_base | the same, behind vLLM's /pooling |
| judge | `LabelTokenScorer` | llamacpp/FILE.gguf | P(yes) where its answer about a step begins |
| judge | `JudgeScorer` | any model behind an API | its written answer about each step |
| generative | `GenerativeScorer` | llamacpp/FILE.gguf | the verdict behind a critique, see `critiques` |
| generative | `ServedGenerativeScorer` | any model behind an API | verdicts in whole critiques, by votes |
| probe | `ProbeScorer` | probe/DIRECTORY | a head on the states of the weak model, which writes the steps |
| constant | `ConstantScorer` | none | one value for every step |
| (code only) | `PerfectScorer` | none | a checker that knows |

What well-known process reward models take, in GB of 10^9 bytes, computed from parameter counts of the
published config.json, not run here. Weights are without the language-modelling head where it is not used, the cache is
of one sequence of 4,096 tokens in 16 bits.

| model | kind | parameters | weights in bf16 | cache | beside a 4B model in 24 GB |
|---|---|---|---|---|---|
| Skywork-o1-Open-PRM-Qwen-2.5-1.5B | classifier | 1.54e9 | 3.1 | 0.12 | yes, with the 4B in bf16 |
| Qwen2.5-Math-PRM-7B | classifier, pooling | 7.08e9 | 14.2 | 0.23 | tight in bf16; yes with the 4B in Q8_0 |
| Qwen2.5-Math-PRM-72B | classifier, pooling | 71.5e9 | 143.1 | 1.34 | no |

A 4B model (Qwen3-4B, 4.02e9 parameters) takes 8.0 in bf16 or 4.3 in Q8_0, and 0.60 of cache per sequence.
"""

from stepwise.models.scorers.base import BatchScorer, Item, Scored, Scorer, score_items
from stepwise.models.scorers.classifier import ClassifierScorer
from stepwise.models.scorers.generative import GenerativeScorer
from stepwise.models.scorers.judge import JudgeScorer
from stepwise.models.scorers.label_token import LabelTokenScorer
from stepwise.models.scorers.load import ConstantScorer, PerfectScorer, load_scorer
from stepwise.models.scorers.pooling import PoolingScorer
from stepwise.models.scorers.prefix import PrefixScorer
from stepwise.models.scorers.probe import ProbeScorer

__all__ = [
    "BatchScorer",
    "ClassifierScorer",
    "ConstantScorer",
    "GenerativeScorer",
    "Item",
    "JudgeScorer",
    "LabelTokenScorer",
    "PerfectScorer",
    "PoolingScorer",
    "PrefixScorer",
    "ProbeScorer",
    "Scored",
    "Scorer",
    "load_scorer",
    "score_items",
]
