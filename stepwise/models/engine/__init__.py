"""llama.cpp in this process, on token ids: batched, with shared prefixes, grammars and adapters."""

from stepwise.models.engine.engine import Engine
from stepwise.models.engine.jobs import Counters, Generation, GenerationJob, Logits
from stepwise.models.engine.reading import Reading
from stepwise.models.engine.schema import BoundedGrammar, schema_grammar

__all__ = [
    "BoundedGrammar",
    "Counters",
    "Engine",
    "Generation",
    "GenerationJob",
    "Logits",
    "Reading",
    "schema_grammar",
]
