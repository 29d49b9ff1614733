"""The lab's problems: what a checker must know, and that no split leaks into another."""

from __future__ import annotations

import random
from itertools import product

import pytest

from stepwise.errors import DataError
from stepwise.lab.families import FAMILIES, HIGHEST, TEST_ONLY_FAMILY, TRAPS, wordings
from stepwise.lab.problems import SPLITS, Knobs, LabProblem, generate, make
from stepwise.lab.references import reference
from stepwise.steps import extract_answer, split_steps


def signature(problem: LabProblem) -> tuple[object, ...]:
    return (problem.start, *((o.family, o.params) for o in problem.operations))


@pytest.fixture(scope="module")
def problems() -> list[LabProblem]:
    return generate("test", 150)


def test_no_two_splits_share_a_problem() -> None:
    seen: dict[tuple[object, ...], str] = {}
    for split, (base, _) in SPLITS.items():
        for problem in generate(split, 60):
            assert seen.setdefault(signature(problem), base) == base


def test_a_problem_depends_on_its_split_and_number_alone() -> None:
    later = generate("test", 3, start=5)
    make.cache_clear()
    assert generate("test", 8)[5:] == later
    assert later[0].problem.id == "lab/test/5"


def test_other_knobs_give_other_ids() -> None:
    problem = make("test", 0, Knobs(lengths=(12, 12), traps=(0.0, 0.0, 1.0)))
    assert len(problem.operations) == 12
    assert len(problem.traps) == 2
    assert problem.problem.id not in {"lab/test/0", make("test", 0, Knobs(lengths=(11, 11))).problem.id}


def test_an_unknown_split_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(DataError, match=r"'tset' is not one of pretrain, train, val, test"):
        generate("tset", 1)


def test_right_solutions_are_right_in_every_step(problems: list[LabProblem]) -> None:
    for number, problem in enumerate(problems):
        steps = problem.solution(random.Random(number))
        assert problem.check(steps) == [True] * (len(problem.operations) + 1)
        assert extract_answer("\n\n".join(steps)) == problem.problem.answer == str(problem.values()[-1])
        assert split_steps("\n\n".join(steps)) == steps


def test_misled_solutions_first_go_wrong_at_a_trap_and_end_wrong(problems: list[LabProblem]) -> None:
    wrong = 0
    for number, problem in enumerate(problems):
        steps = problem.solution(random.Random(number), misled=True)
        first = problem.first_error(steps)
        if first is None:
            continue
        wrong += 1
        assert FAMILIES[problem.operations[first].family].wrong is not None
        assert extract_answer("\n\n".join(steps)) != problem.problem.answer
    assert wrong > len(problems) // 3


def test_every_mixture_of_right_and_wrong_rules_stays_whole_and_in_range(problems: list[LabProblem]) -> None:
    for problem in problems:
        for choices in product((False, True), repeat=len(problem.traps)):
            value: int | None = problem.start
            misled = iter(choices)
            for operation in problem.operations:
                assert value is not None
                family = FAMILIES[operation.family]
                use_wrong = next(misled) if family.wrong else False
                value = operation.value(value, use_wrong and family.misled(value))
                assert value is not None
                assert 1 <= value <= HIGHEST


def test_steps_after_an_error_are_judged_by_what_stands_before_them() -> None:
    problem = next(p for p in generate("test", 50) if len(p.operations) >= 4)
    steps = problem.solution(random.Random(0))
    off = problem.values()[1] + 1
    altered = [steps[0], f"That makes {off}."]
    value: int | None = off
    for operation in problem.operations[2:]:
        value = operation.value(value) if value is not None else None
        altered.append(f"Now there are {value}.")
    verdicts = problem.check(altered)
    assert verdicts[:2] == [True, False]
    assert verdicts[2:] == ["None" not in text for text in altered[2:]]


@pytest.mark.parametrize("spoil", ["false equation", "early box", "one step too many", "no number"])
def test_what_makes_a_step_wrong(spoil: str, problems: list[LabProblem]) -> None:
    problem = problems[0]
    steps = problem.solution(random.Random(0))
    value = problem.values()[0]
    if spoil == "one step too many":
        assert problem.check([*steps, steps[-1]])[-1] is False
        return
    steps[0] = {
        "false equation": f"1 + 1 = 3, so there are {value}.",
        "early box": rf"So \boxed{{{value}}}.",
        "no number": "Clearly.",
    }[spoil]
    assert problem.check(steps)[0] is False


def test_the_true_step_repairs_a_wrong_prefix(problems: list[LabProblem]) -> None:
    repaired = 0
    for number, problem in enumerate(problems):
        steps = problem.solution(random.Random(number), misled=True)
        first = problem.first_error(steps)
        if first is None:
            continue
        step = problem.true_step(steps[:first])
        assert step is not None
        assert problem.first_error([*steps[:first], step]) is None
        repaired += 1
    assert repaired > 0


def test_references_are_right_and_in_other_words_than_solutions(problems: list[LabProblem]) -> None:
    for problem in problems[:40]:
        own = {s for n in range(4) for s in problem.solution(random.Random(n))}
        for granularity in ("full", "compressed", "regrouped"):
            text = reference(problem, granularity)  # type: ignore[arg-type]
            assert extract_answer(text) == problem.problem.answer
            assert not own & set(split_steps(text))
        assert problem.problem.reference == reference(problem, "full")
    with pytest.raises(DataError, match="'short' is not one of full, compressed, regrouped"):
        reference(problems[0], "short")  # type: ignore[arg-type]


def test_compressed_references_hide_the_values_between(problems: list[LabProblem]) -> None:
    hidden = shown = 0
    for problem in problems[:40]:
        words = reference(problem, "compressed").replace(",", " ").replace(".", " ").split()
        full = reference(problem, "full").replace(".", " ").split()
        middle = [str(v) for v in problem.values()[:-1]]
        hidden += sum(v not in words for v in middle)
        shown += sum(v in full for v in middle)
    assert shown == sum(len(p.values()) - 1 for p in problems[:40])
    assert hidden > 0.8 * shown


@pytest.mark.parametrize("name", [f.name for f in TRAPS])
def test_every_trap_has_twenty_wordings_half_of_them_for_tests(name: str) -> None:
    shared, test = set(wordings(name, "shared")), set(wordings(name, "test"))
    assert len(shared | test) >= 20
    assert not shared & test
    assert abs(len(shared) - len(test)) <= 1


def test_training_pools_hold_neither_the_test_family_nor_test_wordings() -> None:
    for split in ("train", "val"):
        assert all(TEST_ONLY_FAMILY not in p.traps for p in generate(split, 150))
    for problem in generate("test-wording", 60):
        for operation in problem.operations:
            if FAMILIES[operation.family].wrong is None:
                continue
            fields = operation.fields(problem.start, problem.items)
            shared = {s.format(**fields) for s in wordings(operation.family, "shared")}
            assert operation.sentence not in shared


def test_the_recovery_split_lets_some_wrong_steps_end_right() -> None:
    def recovered(split: str) -> float:
        ends = []
        for number, problem in enumerate(generate(split, 200)):
            steps = problem.solution(random.Random(number), misled=True)
            if problem.first_error(steps) is not None:
                ends.append(extract_answer(steps[-1]) == problem.problem.answer)
        return sum(ends) / len(ends)

    assert recovered("test") == 0
    assert 0.15 <= recovered("test-recovery") <= 0.30
