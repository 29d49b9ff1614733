"""Directories of which one file was edited, cut or damaged: heads, adapters, scorers, loops, labels, forms."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from evals.mutations import mutants
from stepwise import lab
from stepwise.config import Config, ScorerConfig
from stepwise.errors import StepwiseError
from stepwise.interventions.step_labels import COST, tokens_of
from stepwise.io import append_rows, read_json, write_text
from stepwise.models.engine.weights import check_origin
from stepwise.models.safetensors import fingerprint
from stepwise.models.scorers.critiques import CritiqueForm
from stepwise.models.scorers.head import CARD, WEIGHTS, Head, HeadCard
from stepwise.rounds.results import LoopRound, read_loop
from stepwise.training.adapters import check_adapter
from stepwise.training.cards import add_scorer

PROMPT = Config().prompt
FORMS = Path(__file__).parent.parent / "stepwise" / "models" / "scorers" / "templates"


def _head(folder: Path) -> None:
    Head(np.zeros(2 * 4 + 2 * 9 + 3, np.float32), 0.0, HeadCard("m@12345678", "0123456789ab", width=4)).save(folder)


def _adapter(folder: Path) -> None:
    shutil.copytree(lab.model_path("lab-critic", "safetensors"), folder, dirs_exist_ok=True)
    base = {"name": "lab-weak", "fingerprint": fingerprint(lab.model_path("lab-weak", "safetensors"))}
    write_text(folder / "card.json", json.dumps({"base": base, "prompt_hash": PROMPT.hash, "config": {"prompt": {}}}))


def _scorer(folder: Path) -> None:
    weak = {"model": "llamacpp/lab-weak", "train_from": str(lab.model_path("lab-weak", "safetensors"))}
    facts = {"reading": {"layout": "steps"}, "calibration": {"slope": 2.0, "knots": [[0.1, 0.2], [0.5, 0.9]]}}
    card = {"config": {"models": {"weak": weak}, "prompt": {}}, "prompt_hash": PROMPT.hash, "scorer": facts}
    write_text(folder / "card.json", json.dumps(card))


def _loop(folder: Path) -> None:
    append_rows(folder / "rounds.jsonl", [LoopRound(0, None, {"routing": 3}, {}, None, False, 0, 0.5, True)])
    append_rows(folder / "points.jsonl", [])
    write_text(folder / "target.json", '{"accuracy": 0.5}\n')


def _labels(folder: Path) -> None:
    write_text(folder / COST, '{"generated tokens": 12}\n')


def _form(folder: Path) -> None:
    shutil.copy(FORMS / "thinkprm.toml", folder / "mine.toml")


def _use_adapter(folder: Path) -> object:
    check_origin(folder / "adapter.gguf", "", {}, Path("model.gguf"), {}, folder / "nowhere")
    return check_adapter(folder, lab.model_path("lab-weak", "safetensors"), PROMPT)


WHOLE: list[tuple[str, str, Callable[[Path], None], Callable[[Path], object]]] = [
    ("head", CARD, _head, Head.load),
    ("head", WEIGHTS, _head, Head.load),
    ("adapter", "card.json", _adapter, _use_adapter),
    ("adapter", "adapter_config.json", _adapter, _use_adapter),
    ("scorer", "card.json", _scorer, lambda folder: ScorerConfig(kind="label_token", model=str(folder))),
    ("loop", "rounds.jsonl", _loop, read_loop),
    ("loop", "target.json", _loop, read_loop),
    ("labels", COST, _labels, lambda folder: tokens_of([folder])),
    ("form", "mine.toml", _form, lambda folder: CritiqueForm.load(str(folder / "mine.toml"))),
]


@pytest.mark.parametrize(("kind", "name", "make", "use"), WHOLE, ids=[f"{kind}-{name}" for kind, name, _, _ in WHOLE])
def test_a_damaged_file_of_a_directory_is_an_error_of_ours_or_is_read(
    kind: str, name: str, make: Callable[[Path], None], use: Callable[[Path], object], tmp_path: Path
) -> None:
    make(tmp_path)
    use(tmp_path)
    whole, faults = (tmp_path / name).read_bytes(), {}
    for data in mutants(whole, random.Random(kind + name), 60):
        (tmp_path / name).write_bytes(data)
        try:
            use(tmp_path)
        except (StepwiseError, ValidationError):  # the second where a configuration is read: `Config.load` names it
            pass
        except Exception as error:
            faults[f"{type(error).__name__}: {str(error)[:80]}"] = data[:300]
    assert faults == {}


@pytest.mark.parametrize("value", ["null", '"x"', "true", "NaN", "1e400", "[]"])
def test_a_field_that_is_missing_or_of_another_type_is_named(value: str, tmp_path: Path) -> None:
    write_text(tmp_path / "card.json", f'{{"a": {{"b": {value}}}}}')
    with pytest.raises(StepwiseError, match=r"card\.json: a\.b is .*, not a number; restore it"):
        read_json(tmp_path / "card.json", "restore it", {"a.b": float})


def test_a_card_that_was_changed_is_not_written_over(tmp_path: Path) -> None:
    write_text(tmp_path / "card.json", '{"base": {}}')
    with pytest.raises(StepwiseError, match="not as it was written"):
        add_scorer(tmp_path, {})
    assert (tmp_path / "card.json").read_text() == '{"base": {}}'
