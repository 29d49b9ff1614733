"""How far sampler and trainer are apart by the type of the sampler's weights: llama.cpp with a quantized GGUF against
transformers with the weights that it was made from, on the sampler's own solutions.

For each GGUF that is given: its weights are taken as they are (`stepwise import`), written as F16, and quantized by
llama.cpp into each other type. The figures, mean absolute differences of log-probabilities in nats, go to gaps.json:
what `rl.tolerance` of such a model has to allow. A GGUF that is quantized already has lost what quantizing it to the
same type again would lose, so that its own type comes out too small.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
from pydantic import PositiveInt

from stepwise.config import ModelConfig
from stepwise.errors import BackendError
from stepwise.io import read_json, write_text
from stepwise.lab.problems import generate
from stepwise.models.base import Request
from stepwise.models.engine.context import library
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.models.shared import load_engine
from stepwise.models.sizes import GgufFacts
from stepwise.prompt import STEPS, SolvePrompt
from stepwise.runs.progress import followed
from stepwise.runs.shell import POSITIONAL, Options, Run, program
from stepwise.training.export.from_gguf import import_gguf
from stepwise.training.export.gguf import export_gguf

TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")


class _Options(Options):
    neutral = ("ggufs",)

    ggufs: Annotated[tuple[Path, ...], POSITIONAL]
    """whole models"""
    n: PositiveInt = 16
    """solutions to compare on"""
    max_tokens: PositiveInt = 96
    """most tokens of one"""
    threads: PositiveInt = 1


@program(_Options, doc=__doc__)
def main(run: Run[_Options]) -> None:
    path = run.path("gaps.json")
    models: dict[str, Any] = read_json(path, "remove it")["models"] if path.exists() else {}
    names = " ".join(path.name for path in run.args.ggufs)
    command = f"python -m evals.sampler_gaps {names} --n {run.args.n} --max-tokens {run.args.max_tokens}"
    for gguf in run.args.ggufs:
        facts = GgufFacts.read(gguf)
        arch, width = facts.fields["general.architecture"], facts.of_arch("embedding_length")
        gaps = models.setdefault(gguf.stem, {"architecture": arch, "width": width, "gaps": {}})["gaps"]
        with TemporaryDirectory(dir=run.out) as folder:
            base = import_gguf(gguf, Path(folder) / "base")
            source = export_gguf(base, Path(folder) / "F16.gguf", "f16")
            for kind in followed([k for k in TYPES if k not in gaps], f"{gguf.stem}: quantizations"):
                file = source if kind == "F16" else _quantized(source, Path(folder) / f"{kind}.gguf", kind)
                gaps[kind] = row = _gap(run.args, file, base)
                run.say(f"{gguf.stem} {kind}: mean {row['mean']:.4f}, most {row['most']:.3f}, {row['tokens']} tokens")
                text = json.dumps({"command": command, "cache": "f16", "models": models}, indent=1)
                write_text(path, text + "\n")  # of each as it comes: a real model takes minutes


def _quantized(source: Path, target: Path, kind: str) -> Path:
    lib = library()
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.nthread = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{kind}"), 1
    code = lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    if code:
        raise BackendError(f"{source} could not be quantized to {kind} (code {code})")
    return target


def _gap(args: _Options, gguf: Path, base: Path) -> dict[str, float | int]:
    """On `n` solutions that the sampler draws at temperature 1."""
    import torch
    from transformers import AutoModelForCausalLM

    load = ModelConfig(model=f"llamacpp/{gguf}", context=1024, sequences=args.n, threads=args.threads)
    problems = [made.problem for made in generate("train", args.n)]
    requests = [
        Request(p, stop="solution", max_tokens=args.max_tokens, temperature=1.0, seed=i) for i, p in enumerate(problems)
    ]
    with closing(LlamaCppBackend(load_engine(load), SolvePrompt(system=STEPS))) as backend:
        drawn = backend.continue_solutions(requests)
        prompts = [backend.prefix_ids(request) for request in requests]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    differences = []
    for prompt, made in zip(prompts, drawn, strict=True):
        if made.logprobs is None:
            continue
        ids = torch.tensor([[*prompt, *made.token_ids]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        theirs = logits.gather(-1, ids[0, len(prompt) :, None])[:, 0].numpy()
        differences.append(np.abs(theirs - np.array(made.logprobs)))
    every = np.concatenate(differences)
    return {"mean": round(float(every.mean()), 5), "most": round(float(every.max()), 4), "tokens": int(every.size)}


if __name__ == "__main__":
    sys.exit(main())
