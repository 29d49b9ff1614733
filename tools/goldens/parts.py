"""What is recorded beside traces: a collection, training steps, the POMDP's bounds, a fit, the credit schemes."""

from __future__ import annotations

import hashlib
import json
import math
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .names import resolve
from .traces import HAZARD, LAW_ROWS

EXACT = ("kv_type=f32", "flash_attention=false")
_CLOCK = ("seconds", "bytes", "time")
_UNKEPT = ("config_hash", "evaluated_tokens")  # say how a configuration is written, and what a cache held
_LEARN = ("lora.device=cpu", "lora.rank=4")


def collection(problems: int = 6) -> dict[str, Any]:
    """All rows of a collection, by file: every stage of every chunk, and the dataset."""
    import stepwise as sw
    from stepwise.interventions import collect

    exact = [f"models.{role}.{setting}" for role in ("weak", "critic") for setting in EXACT]
    config = sw.Config.load(None, [*exact, "critic.candidates=3", "critic.temperature=0.6"])
    kind = resolve("CollectSettings")
    rule = {"accept": "success", "check_form": False} if "accept" in kind.model_fields else {}  # as it was recorded
    settings = kind(rollouts=3, guided=8, batch=4, compare=4, fresh=2, chunk=3, max_tokens=300, **rule)
    given = [made.problem for made in sw.lab.generate("val", problems, start=24)]
    with tempfile.TemporaryDirectory() as folder:
        dataset = collect(given, config, Path(folder) / "out", settings=settings)
        files = [*sorted(dataset.parent.glob("chunks/*/*.jsonl")), dataset]
        return {str(path.relative_to(dataset.parent)): without(_rows(path), _UNKEPT) for path in files}


def supervised(steps: int = 3) -> dict[str, Any]:
    """Steps of supervised training on lab-weak."""
    from stepwise.training import sft

    settings = ("sft.batch=4", "sft.epochs=1", "sft.learning_rate=1e-3", "sft.suffix_weight=0.5")
    return _trained(sft, list(_examples(4 * steps)), settings)


def preference(steps: int = 2) -> dict[str, Any]:
    """Steps of preference training on lab-weak."""
    from stepwise.training import dpo

    pairs = []
    for row in _examples(4 * steps):
        texts = {"chosen": row["intervention"], "rejected": row["intervention"].replace(" = ", " = 9")}
        sides = {name: "\n\n".join((*row["prefix"], text)) for name, text in texts.items()}
        pairs.append({"id": row["id"], "prompt": row["question"], **sides, "answer": row["answer"]})
    return _trained(dpo, pairs, ("dpo.batch=4", "dpo.epochs=1", "dpo.learning_rate=1e-3", "dpo.nll=0.1"))


def reinforcement(steps: int = 2) -> dict[str, Any]:
    """Steps of GRPO on lab-weak, with credit by the scorer's first errors, and their rollouts."""
    import stepwise as sw
    from stepwise.training import grpo

    exact = [f"{part}.{setting}" for part in ("models.weak", "scorer") for setting in EXACT]
    settings = ("rl.problems=3", "rl.group=4", "rl.max_tokens=200", "rl.learning_rate=1e-3", "rl.no_answer=mask")
    given = [made.problem for made in sw.lab.generate("train", 3 * steps, start=12)]
    return _trained(grpo, given, (f"rl.steps={steps}", "rl.credit.scheme=first_error", *exact, *settings))


def _trained(method: Any, data: Any, settings: tuple[str, ...]) -> dict[str, Any]:
    """The adapter and the metrics of a short run."""
    import torch

    import stepwise as sw

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        if isinstance(data[0], dict):
            path = Path(folder) / "rows.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in data))
            data = path
        adapter = method(data, sw.Config.load(None, [*_LEARN, *settings]), out)
        rollouts = {path.name: _rows(path) for path in sorted(out.glob("rollouts/*.jsonl"))}
        return {
            **weights(Path(adapter) / "adapter_model.safetensors"),
            "metrics": [_untimed(row) for row in _rows(out / "metrics.jsonl")],
            **({"rollouts": rollouts} if rollouts else {}),
        }


def weights(path: Path) -> dict[str, Any]:
    """The hash of all weights, and of each tensor the sum and the norm, for where the hashes differ."""
    from safetensors.numpy import load_file

    tensors = dict(sorted(load_file(path).items()))
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.shape} {tensor.dtype}".encode() + tensor.tobytes())
    sums = {name: [float(t.astype(np.float64).sum()), float(np.linalg.norm(t))] for name, t in tensors.items()}
    return {"weights": digest.hexdigest(), "sums": sums}


def _examples(count: int) -> Iterator[dict[str, Any]]:
    """Rows of a dataset of interventions on lab problems, as files hold them."""
    import stepwise as sw

    for number, made in enumerate(sw.lab.generate("train", count)):
        steps = made.solution(random.Random(number))
        at = number % (len(steps) - 1)
        yield {
            "id": f"{made.problem.id}/r0/c0", "question": made.problem.question, "answer": made.problem.answer,
            "prefix": steps[:at], "intervention": steps[at], "origin": "intervention",
            "parents": {"problem": made.problem.id}, "models": {"critic": "none"}, "prompt_hash": sw.SolvePrompt().hash,
            "config_hash": "none", "seed": 0, "successes": 1, "guided": 8,
        }  # fmt: skip


def pomdp() -> dict[str, Any]:
    """Bounds of plans of the routing POMDP for some prices and both hazards, and what they say at some beliefs."""
    cls = resolve("RoutingPomdp")
    models = {
        "one strong model": cls(0.93, (0.99,), HAZARD, LAW_ROWS, 20.0),
        "two, discounted": cls(0.85, (0.95, 0.99), HAZARD, LAW_ROWS, 30.0, 100.0, 0.98),
    }
    found: dict[str, Any] = {}
    for name, model in models.items():
        for price in (0.0, 0.1, 0.25, 0.6):
            for options in ({}, {"published_hazard": True}):
                plan = model.solve(price, 1e-4, **options)
                keep, *others = plan.action_values(2, (0.5, 0.1, 0.4), 0.0)  # of a step that costs nothing
                gain = max(others) - keep
                found[f"{name}, {price}, {options}"] = {
                    "gap": plan.gap,
                    "root": list(plan.root_value),
                    "values": [
                        [float(value) for value in plan.action_values(step, belief, 17.0)]
                        for step in (0, 3, 7)
                        for belief in ((0.9, 0.02, 0.08), (0.4, 0.3, 0.3), (0.05, 0.15, 0.8))
                    ],
                    "critical": 0.0 if gain <= 0 else gain / price if price else math.inf,
                }
    return json.loads(json.dumps(found, default=_plain))


def fit() -> dict[str, Any]:
    """The routing model fitted to 80 traces of 40 lab problems, with steps and scores of a seeded random writer."""
    import stepwise as sw

    from_lab_trace, fit_router = resolve("from_lab_trace"), resolve("fit_router")
    traces = []
    for number, made in enumerate(sw.lab.generate("train", 40)):
        for kind in ("weak", "mixed"):
            rng = random.Random(f"{number} {kind}")
            steps, texts = [], []
            for text in made.solution(rng, misled=True):
                strong = kind == "mixed" and rng.random() < 0.3
                step = _written(sw, made, text, texts, rng, strong)
                texts.append(step.text)
                steps.append(step)
            finish = "answer" if sw.extract_answer(texts[-1]) is not None else "eos"
            traces.append(from_lab_trace(sw.Trace(made.problem, tuple(steps), finish)))
    names = {"weak": "weak", "strong": "strong", "scorer": "scorer"}
    fitted = fit_router(traces, **names, labels="lab", bins=5, samples=20, seed=3)
    with tempfile.TemporaryDirectory() as folder:
        fitted.save(Path(folder) / "fit.json")
        row = json.loads((Path(folder) / "fit.json").read_text())
    row["card"].pop("splitter", None)  # the recorded tree had one way to end steps, and no name for it
    return row


def _written(sw: Any, made: Any, text: str, before: list[str], rng: random.Random, strong: bool) -> Any:
    """A step with a score that knows whether it is right, mostly; a strong one stands for a discarded draft."""
    right = made.check([*before, text])[-1]
    score = min(1.0, max(0.0, rng.gauss(0.85 if right else 0.25, 0.2)))
    draft = sw.Step(text, "weak", score, sw.Usage("weak", 1, 50, 50, len(text.split())))
    if not strong:
        return draft
    true = made.true_step(before) or text
    return sw.Step(true, "strong", None, sw.Usage("strong", 1, 50, 50, len(true.split())), discarded=(draft,))


def credit() -> dict[str, Any]:
    """Advantages of seeded random groups under every scheme, with each of its options."""
    import stepwise as sw

    schemes = resolve("SCHEMES")
    options: dict[str, tuple[dict[str, Any], ...]] = {
        "outcome": ({"scale": True}, {"leave_one_out": True}),
        "first_error": ({"blame": "rest"},),
        "vppo": ({"alpha": 0.2, "shorten": 0.0, "relu": True},),
        "capo": ({"agree": "union", "scale": True}, {"agree": "intersection"}),
        "oppo": ({"evidence_clip": 10.0},),
        "distill": ({"distill_clip": 0.5},),
        "shuffled": ({"blame": "rest"},),
    }
    base = sw.Config().rl.credit
    found: dict[str, Any] = {}
    for name in schemes:
        for changes in ({}, *options.get(name, ())):
            config = base.model_copy(update={"scheme": name, **changes})
            arrays = [schemes[name](group(seed), config, seed) for seed in range(12)]
            found[f"{name} {changes or ''}".strip()] = {
                "hash": hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest(),
                "values": [[float(round(x, 12)) for x in a[a != 0]] for a in arrays],
            }
    return found


def group(seed: int) -> Any:
    """A random group with every field: one to five rollouts of up to four steps, forced tokens and padding."""
    rng = np.random.default_rng(seed)
    rewards = rng.choice([0.0, 1.0, np.nan], 1 + seed % 5, p=[0.5, 0.4, 0.1])
    shapes = [rng.integers(1, 5, rng.integers(1, 5)).tolist() for _ in rewards]
    mask = np.zeros((len(rewards), max(map(sum, shapes)) + seed % 3), dtype=bool)
    spans = tuple(tuple((sum(row[:k]), sum(row[: k + 1])) for k in range(len(row))) for row in shapes)
    for i, (start, stop) in ((i, span) for i, row in enumerate(spans) for span in row):
        mask[i, start:stop] = rng.random(stop - start) < 0.7
        mask[i, rng.integers(start, stop)] = True
    coarse = [rng.choice([0.0, 0.1, 0.5, 0.9, 1.0], len(row)).tolist() for row in spans]
    return resolve("Group")(
        rewards,
        mask,
        spans,
        scores=tuple(map(tuple, coarse)),
        first_error=tuple(None if rng.random() < 0.3 else int(rng.integers(len(row))) for row in spans),
        values=tuple((*rng.random(len(row)).tolist(), float(r)) for row, r in zip(spans, rewards, strict=True)),
        critiques=tuple(
            tuple(tuple(np.flatnonzero(rng.random(len(row)) < 0.4).tolist()) for _ in range(rng.integers(1, 4)))
            for row in spans
        ),
        evidence=np.where(mask, rng.normal(0, 2, mask.shape), np.nan),
        teacher=np.where(mask, rng.normal(0, 2, mask.shape), np.nan),
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without(value: Any, keys: tuple[str, ...]) -> Any:
    """A JSON value without what has one of these keys, at any depth."""
    if isinstance(value, dict):
        return {key: without(part, keys) for key, part in value.items() if key not in keys}
    return [without(part, keys) for part in value] if isinstance(value, list) else value


def _untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.endswith(_CLOCK)}


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else list(value)
