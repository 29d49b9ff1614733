"""Published numbers that tests compare with; `tests/data/README.md` says where they are from."""

from __future__ import annotations

import json
from pathlib import Path

SCORES = Path(__file__).parent / "data" / "mr_gsm8k_scores.jsonl"
TRIM = Path(__file__).parent / "data" / "trim_pomdp_math_train.json"  # parameters of TRIM-POMDP
REWARD_MODELS = ("math-shepherd_mistral-7b", "reasoneval_wizardmath-7b-v1.1", "reasoneval_llemma-34b")


def write_scores(folder: Path) -> Path:
    """The published scores in ProcessBench's columns, numbers in place of the texts; the file's path."""
    rows = []
    for number, line in enumerate(SCORES.read_text().splitlines()):
        problem, label, scores = json.loads(line)
        steps = [f"solution {number}, step {i}" for i in range(len(scores[0]))]
        named = dict(zip(REWARD_MODELS, scores, strict=True))
        rows.append({"id": str(number), "problem": f"{problem:04}", "steps": steps, "label": label, "scores": named})
    path = folder / "mr_gsm8k_prm_scores.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
