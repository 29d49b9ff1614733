"""Labelled steps: every published form, splits by problem, what is refused, and what scores are worth."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from stepwise.data.scorer_quality import measure_scores, threshold_of
from stepwise.data.step_labels import (
    LabelledSolution,
    check_step_labels,
    load_step_labels,
    split_by_problem,
    with_splitter,
    write_step_labels,
)
from stepwise.errors import DataError

STEPS = ["2 + 3 = 6.", "6 - 1 = 5.", "So it is 5."]
PROCESSBENCH = {"problem": "What is 2 + 3 - 1?", "steps": STEPS, "label": 0}
MR_GSM8K = {
    "question": "What is 2 + 3 - 1?",
    "model_output_steps": STEPS,
    "model_output_solution_correctness": "wrong",
    "model_output_solution_first_error_step": 2,
}


def rated(*completions: tuple[str, int | None], chosen: int | None = 0, human: str | None = None) -> dict[str, object]:
    texts = [{"text": text, "rating": rating, "flagged": None} for text, rating in completions]
    return {"completions": texts, "human_completion": human, "chosen_completion": chosen}


def prm800k(*steps: dict[str, object]) -> dict[str, object]:
    return {"question": {"problem": "q?"}, "label": {"steps": [*steps], "finish_reason": "found_error"}}


def test_processbench_and_mr_gsm8k_have_no_label_after_the_first_error() -> None:
    assert load_step_labels([PROCESSBENCH])[0].labels == (0.0, None, None)
    assert load_step_labels([{**PROCESSBENCH, "label": -1}])[0].labels == (1.0, 1.0, 1.0)
    assert load_step_labels([MR_GSM8K])[0].labels == (1.0, 0.0, None)
    text = {**MR_GSM8K, "model_output_steps": "\n".join(STEPS), "model_output_solution_correctness": "correct"}
    right = load_step_labels([{**text, "model_output_solution_first_error_step": "N/A"}])[0]
    assert right.steps == tuple(STEPS)
    assert right.labels == (1.0, 1.0, 1.0)
    assert right.problem_id == load_step_labels([PROCESSBENCH])[0].problem_id


def test_prm800k_neutral_is_right_and_alternatives_are_solutions_of_their_own() -> None:
    row = prm800k(
        rated(("a", 0)),
        rated(("b", 1), ("b2", -1), ("b3", None)),
        rated(("c", -1), ("c2", 1), chosen=None),
    )
    found = {s.steps: s.labels for s in load_step_labels([row])}
    assert found == {
        ("a", "b", "c"): (1.0, 1.0, 0.0),
        ("a", "b2"): (None, 0.0),
        ("a", "b", "c2"): (None, None, 1.0),
    }
    human = prm800k(rated(("a", -1), chosen=None, human="mine"), rated(("b", 1)))
    assert {s.steps: s.labels for s in load_step_labels([human])} == {("a",): (0.0,), ("mine", "b"): (1.0, 1.0)}


def test_math_shepherd_is_read_by_place_whatever_a_step_says() -> None:
    text = "Jo has 2. Step 1: Why? Step 1: 1 + 1 = 2 {}\nStep 2: 2 - 1 - + = 0 {}\nStep 3: 0 {}"
    row = {"input": text.format("ки", "ки", "ки"), "label": text.format("+", "-", "-"), "task": "GSM8K"}
    (solution,) = load_step_labels([row])
    assert solution.question == "Jo has 2. Step 1: Why?"
    assert solution.steps == ("1 + 1 = 2", "2 - 1 - + = 0", "0")
    assert solution.labels == (1.0, 0.0, 0.0)
    with pytest.raises(DataError, match="row 1: field label: it differs from input at step 2"):
        load_step_labels([{**row, "label": row["label"].replace("2 -", "3 -")}])


def test_trl_and_ours_survive_a_round_through_a_file(tmp_path: Path) -> None:
    trl = {"prompt": "q?", "completions": ["a", "b"], "labels": [True, False]}
    soft = LabelledSolution.of("r?", ["a", "b", "c"], [1.0, 0.3, None], "rollouts")
    written = [*load_step_labels([trl, trl]), soft]
    write_step_labels(tmp_path / "labels.jsonl", written)
    assert load_step_labels(tmp_path / "labels.jsonl") == written
    assert len(written) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q?"}, "row 1 has the columns question"),
        ({**PROCESSBENCH, "label": 3}, "field label: 3"),
        ({**MR_GSM8K, "model_output_solution_first_error_step": 4}, "must lie in 1..3"),
        ({**MR_GSM8K, "model_output_solution_first_error_step": "N/A"}, "row 1 is not in the published form"),
        ({"question": "q?", "steps": ["a"], "labels": [1.5]}, "1.5"),
        ({"question": "q?", "steps": ["a"], "labels": []}, "0 labels for 1 steps"),
        ({"question": {"problem": "q?"}, "label": {}}, "row 1 is not in the published form"),
        ("text", "row 1 has the columns of no row"),
    ],
)
def test_what_is_no_labelled_solution_is_refused_with_its_row(row: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_step_labels([row])


def made(n: int, *, wrong: int = 2) -> list[LabelledSolution]:
    return [
        LabelledSolution.of_first_error(f"{i // 2} + 1?", ["Add.", f"It is {i}."], 1 if i % wrong else None)
        for i in range(n)
    ]


def test_no_problem_is_in_two_parts_and_the_parts_follow_from_the_seed() -> None:
    solutions = made(80)
    splits = split_by_problem(solutions, seed=3)
    problems = [{s.problem_id for s in part} for part in splits]
    assert [len(names) for names in problems] == [24, 6, 10]
    assert sum(map(len, problems)) == len(set().union(*problems)) == 40
    shuffled = random.Random(0).sample(solutions, len(solutions))
    assert [{s.problem_id for s in part} for part in split_by_problem(shuffled, seed=3)] == problems
    assert [{s.problem_id for s in part} for part in split_by_problem(solutions, seed=4)] != problems


def test_labels_that_teach_nothing_are_refused() -> None:
    check_step_labels(split_by_problem(made(80)))
    with pytest.raises(DataError, match="of 5 problems; give 10 at least"):
        check_step_labels(split_by_problem(made(10)))
    with pytest.raises(DataError, match="train solutions have 96 right steps and 0 first errors"):
        check_step_labels(split_by_problem(made(80, wrong=1)))


def test_labels_of_steps_that_end_elsewhere_are_refused_and_a_few_left_out() -> None:
    odd = [LabelledSolution.of(f"odd {i}?", ["One.\n\nTwo.", "Done."], [1.0, 0.0]) for i in range(5)]
    assert with_splitter([*made(80), odd[0]], "paragraphs") == made(80)
    with pytest.raises(DataError, match="5 of 85 labelled solutions have steps that do not end where"):
        with_splitter([*made(80), *odd], "paragraphs")
    with pytest.raises(DataError, match="set the splitter of the labels"):
        with_splitter(made(80), "calculations")


def test_scores_are_measured_up_to_the_first_error_only() -> None:
    solutions = [
        LabelledSolution.of("a?", ["1", "2", "3"], [1.0, 0.0, 0.0]),
        LabelledSolution.of("b?", ["1", "2"], [1.0, 1.0]),
        LabelledSolution.of("c?", ["1", "2"], [None, 0.0]),  # AUROC knows it, F1 does not: no first error is known
    ]
    scores = [[0.9, 0.4, 0.99], [0.8, 0.7], [0.1, 0.95]]
    quality = measure_scores(scores, solutions, threshold_of(scores, solutions))
    assert (quality.right_steps, quality.first_errors) == (3, 2)
    assert quality.auroc is not None
    assert quality.auroc.value == pytest.approx(3 / 6)  # 0.4 lies below all three, 0.95 above
    assert quality.f1 is not None
    assert quality.f1.value == 100
    with pytest.raises(DataError, match="1 scores for 3 steps"):
        measure_scores([[0.9], *scores[1:]], solutions, 0.5)
