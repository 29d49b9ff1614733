"""The card of an adapter: README.md as the Hugging Face hub has it, and the same facts as card.json.

    write_card("out/adapter", "sft", config, base, data={"int.jsonl": rows}, curves=curves)

It says what the adapter was made from (base, data, prompt, configuration, versions), how training went, and what it was
measured to do before and after; what was not measured is said to be so. `adapters.check_adapter` reads it again.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from stepwise import __version__
from stepwise.config import Config
from stepwise.errors import DataError, StepwiseError
from stepwise.grading import GRADER_VERSION
from stepwise.io import write_text
from stepwise.models.safetensors import fingerprint
from stepwise.records import to_json
from stepwise.training.adapters import CARD, check_layout, described, read_card
from stepwise.training.evaluation import Evaluated
from stepwise.training.sinks import numbers

_PACKAGES = ("torch", "transformers", "peft", "safetensors", "gguf", "llama-cpp-python", "dspy")
_CACHED = re.compile(r"models--([^/]+?)--([^/]+)")  # a directory in the hub's cache
Method = Literal["sft", "dpo", "grpo", "dspy", "scorer"]
_METHODS = {
    "sft": "supervised training on prefixes and interventions",
    "dpo": "preference training (DPO) on interventions against the steps that they stand for",
    "grpo": "reinforcement learning on groups of rollouts, with credit per step",
    "dspy": "supervised training on the traces of a DSPy program",
    "scorer": "training on steps with labels, as a process reward model that answers with a label token",
}
_SECTIONS = {"sft": "sft", "dpo": "dpo", "grpo": "rl", "dspy": "sft", "scorer": "prm"}

Curves = Mapping[str, Sequence[tuple[int, float]]]


def _data_facts(rows: Iterable[Any], name: str) -> dict[str, Any]:
    """Of `rows` (the library's types, or dictionaries): how many, of which origins or sources where they have one, and
    a SHA-256 over them in order.
    """
    digest, counts, number = hashlib.sha256(), Counter[str](), 0
    for row in rows:
        digest.update(to_json(row).encode() + b"\n")
        fields = row if isinstance(row, Mapping) else vars(row)
        kind = str(fields.get("origin") or fields.get("source") or "")
        counts.update([kind] if kind else [])
        number += 1
    return {"name": name, "rows": number, "sha256": digest.hexdigest(), "counts": dict(sorted(counts.items()))}


def curves_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Every finite number in the rows of a metrics.jsonl, by key and with the row's step (its place without one).

    A key that a row lacks, or that is null there, has no point there.

    >>> curves_of([{"step": 1, "loss": 0.9}, {"step": 2, "loss": 0.7, "reward": None}])
    {'loss': [(1, 0.9), (2, 0.7)]}
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    for place, row in enumerate(rows):
        for key, value in numbers(row).items():
            curves.setdefault(key, []).append((int(row.get("step", place)), float(value)))
    return curves


def write_card(
    adapter: str | Path,
    method: Method,
    config: Config,
    base: Path,
    *,
    data: Mapping[str, Iterable[Any]] = MappingProxyType({}),
    curves: Curves = MappingProxyType({}),
    before: Evaluated | None = None,
    after: Evaluated | None = None,
) -> Path:
    """Write README.md and card.json into the adapter's directory; returns the README's path.

    `base` is the directory that was trained on, `data` has the rows by name, `curves` pairs (step, value) by name, see
    `curves_of`; `before` and `after` are None where nothing was measured. Hashing the base reads all its weights once.
    Raises DataError where `adapter` is not in PEFT's layout.

    Example:
        write_card("out/sft/adapter", "sft", config, Path("models/Qwen3-0.6B"), data={"dataset": rows})
    """
    check_layout(adapter)
    settings, lora = config.model_dump(mode="json"), described(adapter)
    own_prompts = method == "dspy"  # those of the program's signatures
    sections = ("seed", *(() if own_prompts else ("prompt", "sampling")), "lora", _SECTIONS[method])
    roles = ("weak", "strong") if method == "grpo" and config.rl.credit.scheme == "distill" else ("weak",)
    models = {role: settings["models"][role] for role in roles}
    card = {
        "method": method,
        "base": {"name": base_name(base), "fingerprint": fingerprint(base)},
        "license": _license(base),
        "adapter": {"rank": lora.get("r"), "alpha": lora.get("lora_alpha"), "sha256": _digest(Path(adapter))},
        "prompt_hash": None if own_prompts else config.prompt.hash,
        "config_hash": config.hash,
        "config": {key: settings[key] for key in sections} | {"models": models},
        "data": [_data_facts(rows, name) for name, rows in data.items()],
        "curves": {key: _curve(points) for key, points in curves.items() if points},
        "evaluation": {"before": _measured(before), "after": _measured(after)},
        "versions": _versions(),
    }
    return _write(Path(adapter), card)


def add_evaluation(adapter: str | Path, *, before: Evaluated | None = None, after: Evaluated | None = None) -> Path:
    """Put what was measured since into the card of an adapter; what is None stays as it is. Returns the README's path.

    Raises DataError where the adapter has no card.

    Example:
        add_evaluation("out/sft/adapter", after=evaluate(config, problems, "out/sft/adapter"))
    """
    card = read_card(adapter)
    if card is None or "evaluation" not in card:
        raise DataError(f"adapter {adapter} has no {CARD} of this form; write one with write_card first")
    given = {"before": _measured(before), "after": _measured(after)}
    with _sound(Path(adapter)):
        card["evaluation"] = {when: given[when] or card["evaluation"][when] for when in given}
        return _write(Path(adapter), card)


def add_scorer(adapter: str | Path, facts: Mapping[str, Any]) -> Path:
    """Put what a process reward model is (how it is read, its calibration, what it is worth) into the card of its
    adapter; returns the README's path. Raises DataError where there is no card.

    Example:
        add_scorer("out/scorer/adapter", facts)
    """
    if (card := read_card(adapter)) is None:
        raise DataError(f"adapter {adapter} has no {CARD}; write one with write_card first")
    with _sound(Path(adapter)):
        return _write(Path(adapter), card | {"scorer": dict(facts)})


def base_name(base: Path) -> str:
    """What a card calls a base: its name on the hub where it lies in the hub's cache, else its directory's name.

    >>> base_name(Path("models/Qwen3-0.6B"))
    'Qwen3-0.6B'
    """
    for part in reversed(base.resolve().parts):
        if match := _CACHED.fullmatch(part):
            return f"{match[1]}/{match[2]}"
    return base.resolve().name


def _digest(adapter: Path) -> str | None:
    """SHA-256 of adapter.gguf, which the engine compares before it attaches it; None where it is not exported yet."""
    file = adapter / "adapter.gguf"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _measured(result: Evaluated | None) -> dict[str, Any] | None:
    return None if result is None else {"accuracy": result.accuracy, **json.loads(to_json(result))}


def _curve(points: Sequence[tuple[int, float]], most: int = 200) -> dict[str, Any]:
    """A curve's ends and length, and at most `most` of its points, evenly spread, the ends among them."""
    num = min(len(points), most)
    shown = [points[round(i * (len(points) - 1) / max(num - 1, 1))] for i in range(num)]
    steps, values = zip(*shown, strict=True)
    return {"points": len(points), "first": values[0], "last": values[-1], "steps": [*steps], "values": [*values]}


def _versions() -> dict[str, str | None]:
    ours = {"stepwise": __version__, "grader": GRADER_VERSION, "python": platform.python_version()}
    versions: dict[str, str | None] = {**ours, **dict.fromkeys(_PACKAGES)}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _license(base: Path) -> str:
    """The licence that the base's own card names: an adapter of it is bound by that. "unknown" where it names none."""
    path = base / "README.md"
    if path.is_file():
        front = re.match(r"---\n(.*?)\n---", path.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        named = re.search(r"^license:[ \t]*([\w.\-]+)[ \t]*$", front[1] if front else "", re.MULTILINE)
        if named:
            return named[1]
    return "unknown"


@contextmanager
def _sound(adapter: Path) -> Iterator[None]:
    """DataError where the card of an adapter is not as `write_card` writes it: somebody changed it."""
    try:
        yield
    except StepwiseError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise DataError(f"{adapter / CARD} is not as it was written ({error!r:.200}); restore it") from None


def _write(adapter: Path, card: Mapping[str, Any]) -> Path:
    readme, text = adapter / "README.md", _readme(card)
    write_text(adapter / CARD, json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(readme, text)
    return readme


def _readme(card: Mapping[str, Any]) -> str:
    front = front_matter(
        base_model=card["base"]["name"],
        library_name="peft",
        license=card["license"],
        pipeline_tag="text-generation",
        tags=["lora", "stepwise", card["method"]],
    )
    adapter, versions = card["adapter"], card["versions"]
    parts = [
        front,
        f"# LoRA adapter on {card['base']['name']}",
        f"Made with stepwise {versions['stepwise']} by {_METHODS[card['method']]}: rank {adapter['rank']}, alpha "
        f"{adapter['alpha']}.",
        "## Evaluation",
        _quality(card["scorer"]) if "scorer" in card else _evaluation(card["evaluation"]),
        "## Data",
        markdown_table(
            ("data", "rows", "kinds", "SHA-256"),
            [
                (d["name"], d["rows"], ", ".join(f"{kind} {n}" for kind, n in d["counts"].items()), d["sha256"][:16])
                for d in card["data"]
            ],
        ),
        "## Training",
        markdown_table(
            ("curve", "first", "last", "points"),
            [(key, f"{c['first']:.4g}", f"{c['last']:.4g}", c["points"]) for key, c in card["curves"].items()],
        ),
        "## What it belongs to",
        markdown_table(
            ("what", "value"),
            [
                ("base weights (fingerprint)", card["base"]["fingerprint"]),
                ("prompt hash", card["prompt_hash"] or "none: the prompts are those of a DSPy program"),
                ("configuration hash", card["config_hash"]),
                *((name, installed or "not installed") for name, installed in versions.items()),
            ],
        ),
        f"`{CARD}` beside this file has the same and more: the settings, and the curves themselves.",
    ]
    return "\n\n".join(parts) + "\n"


def _evaluation(evaluation: Mapping[str, Any]) -> str:
    if evaluation["before"] is None and evaluation["after"] is None:
        return "Not evaluated."
    rows = []
    for when in ("before", "after"):
        cells = ("not measured", "", "", "", "")
        if e := evaluation[when]:
            accuracy = "nothing judged" if e["accuracy"] is None else f"{e['accuracy']:.3f}"
            cells = (accuracy, e["problems"], e["samples"], e["judged"], f"{e['temperature']:g}")
        rows.append((when, *cells))
    return markdown_table(("", "pass@1", "problems", "samples of each", "answers judged", "temperature"), rows)


def _quality(scorer: Mapping[str, Any]) -> str:
    """The figures of a process reward model on its test problems."""
    rows = []
    for when in ("before", "after"):
        found = scorer["test"][when]
        ends = [f"{x[0]:.3f} ({x[1]:.3f} to {x[2]:.3f})" if x else "none" for x in (found["auroc"], found["f1"])]
        rows.append((f"{when} calibration", *ends, f"{found['ece']:.3f}", found["solutions"], found["first_errors"]))
    head = ("", "AUROC of right steps against first errors", "ProcessBench F1, %", "ECE", "solutions", "first errors")
    spent = ", ".join(f"{name} {value}" for name, value in scorer["spent"].items())
    return f"{markdown_table(head, rows)}\n\nOn problems left out of training. Spent: {spent}."


def front_matter(**fields: Any) -> str:
    """The block that begins a card of the hub; JSON is YAML, so that every text is quoted as it must be.

    >>> print(front_matter(license="mit", tags=["lora"]))
    ---
    license: "mit"
    tags: ["lora"]
    ---
    """
    return "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items()) + "---"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table, or that there is nothing to show.

    >>> print(markdown_table(["step", "loss"], [[1, 0.9], [2, 0.7]]))
    | step | loss |
    | --- | --- |
    | 1 | 0.9 |
    | 2 | 0.7 |
    """
    if not rows:
        return "Not recorded."

    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])
