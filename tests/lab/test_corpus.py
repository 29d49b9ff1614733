"""What the lab's models are trained on, and that a killed training run loses nothing."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from evals.lab_corpus import (
    BAD,
    GOOD,
    IGNORE,
    SCORE,
    SPECIAL,
    _scored_example,
    _solution_example,
    _taught_labels,
    slipped,
    solved,
    train_tokenizer,
)
from stepwise.errors import DataError
from stepwise.lab.families import SCORER_BLIND_SPOT
from stepwise.lab.problems import generate

pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> object:
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"), problems=200)


def test_the_tokenizer_has_single_digits_and_its_special_tokens_first(tokenizer) -> None:
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == list(range(len(SPECIAL)))
    assert [tokenizer.decode([i]) for i in tokenizer("407")["input_ids"]] == ["4", "0", "7"]


def test_the_prompt_is_what_the_chat_template_makes(tokenizer) -> None:
    problem = generate("pretrain", 1)[0]
    ids, targets = _solution_example(problem, problem.solution(random.Random(0)), tokenizer)
    chat = [{"role": "user", "content": problem.problem.question}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ids[: len(prompt)] == prompt
    assert targets[: len(prompt) - 1] == [IGNORE] * (len(prompt) - 1)
    assert targets[len(prompt) - 1 : -1] == ids[len(prompt) :]


def test_labels_are_predicted_from_the_marker_after_each_step(tokenizer) -> None:
    problem = generate("pretrain", 1)[0]
    steps = problem.solution(random.Random(0))
    labels = [True] * len(steps)
    labels[1] = False
    ids, targets = _scored_example(problem, steps, labels, tokenizer)
    good, bad, marker = (tokenizer.convert_tokens_to_ids(t) for t in (GOOD, BAD, SCORE))
    assert len(ids) == len(targets)
    assert [(i, t) for i, t in zip(ids, targets, strict=True) if t != IGNORE] == [
        (marker, good if label else bad) for label in labels
    ]


def test_the_scorer_is_taught_the_truth_but_for_its_blind_spot() -> None:
    missed = told = 0
    for number, problem in enumerate(generate("pretrain", 400)):
        steps = slipped(problem, random.Random(number))
        truth, taught = problem.check(steps), _taught_labels(problem, steps)
        first = truth.index(False) if False in truth else len(truth)
        assert taught[:first] == truth[:first]
        if first < len(problem.operations):
            blind = problem.operations[first].family == SCORER_BLIND_SPOT
            missed += blind
            told += not blind
            assert taught[first] is blind
    assert missed > 5
    assert told > 50


def test_packing_keeps_every_document_whole(tokenizer) -> None:
    pretrain = pytest.importorskip("evals.lab_training")
    documents = list(itertools.islice(solved(tokenizer, misled=True, seed=3), 400))
    batch = next(pretrain.pack(iter(documents), rows=6, row=512, pad=0))
    whole = {tuple(ids): targets for ids, targets in documents}
    for number in range(batch.documents.max() + 1):
        where = batch.documents == number
        ids = tuple(batch.ids[where].tolist())
        assert batch.targets[where].tolist() == whole[ids]
        assert batch.positions[where].tolist() == list(range(len(ids)))
    assert (batch.documents >= 0).mean() > 0.8
    assert np.all(batch.targets[batch.documents < 0] == IGNORE)


def test_a_killed_training_run_ends_where_an_uninterrupted_one_does(tokenizer, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from evals.lab_training import Recipe, Shape, new_model, pack, train

    recipe = Recipe(tokens=2 * 512 * 8, row=512, rows=2, bf16=False, compile=False)
    shape = Shape(hidden=64, layers=1, heads=1, feed_forward=64)

    class Killed(Exception):
        pass

    def run(folder: Path, kill_at: int | None = None):
        model = new_model(shape, tokenizer, seed=1)
        batches = pack(solved(tokenizer, misled=True, seed=1), recipe.rows, recipe.row, 0)

        def on_step(step: int, loss: float) -> None:
            if step == kill_at:
                raise Killed

        train(model, batches, recipe, folder, on_step)
        return model.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill_at=5)
    resumed = run(tmp_path / "killed")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    batches = pack(solved(tokenizer, misled=True, seed=1), 2, 512, 0)
    other = Recipe(tokens=512 * 4, row=512, rows=2, bf16=False, compile=False)
    with pytest.raises(DataError, match="give another --out"):
        train(new_model(shape, tokenizer, 1), batches, other, tmp_path / "killed")
