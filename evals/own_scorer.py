"""A scorer of one's own in the lab, beside lab-scorer: against the truth, which the lab knows.

--labels is a run of `stepwise label_steps --lab N`: how often its first errors are the true ones. --scorer (directories
of `stepwise train scorer`) are measured on lab-weak's solutions of held-out problems, as lab-scorer is: AUROC of right
steps against first errors over all families of operations, without the family that lab-scorer was taught to miss, and
by whether lab-weak ever solves the problem: rollouts label only those that it does. Lab figures: a test bed.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

from pydantic import PositiveInt

import stepwise as sw
from stepwise.config import Config
from stepwise.data.scorer_quality import measure_scores, threshold_of
from stepwise.data.step_labels import LabelledSolution
from stepwise.interventions.step_labels import read_attempts
from stepwise.lab.families import SCORER_BLIND_SPOT
from stepwise.lab.problems import LabProblem, generate
from stepwise.models.base import Request
from stepwise.runs.shell import Options, Run, program
from stepwise.stats import Interval, wilson


class _Options(Options):
    scorer: tuple[Path, ...] = ()
    """directories of scorers"""
    labels: Path | None = None
    """a run of label_steps on the lab's training problems"""
    problems: PositiveInt = 300
    """held-out problems; half of them choose the thresholds"""
    samples: PositiveInt = 4
    """solutions of each"""


@program(_Options, doc=__doc__)
def main(run: Run[_Options]) -> None:
    if run.args.labels is not None:
        _show_labels(run, run.args.labels)
    problems = generate("test", run.args.problems)
    solutions = solved(run.config, problems, run.args.samples)
    families = [_family(problems[int(at)], s) for at, s in solutions]
    chosen, measured = ([i for i, (at, _) in enumerate(solutions) if at % 2 == half] for half in (0, 1))
    solvable = {at for at, s in solutions if s.first_error is None}
    parts = {
        "all": measured,
        "without the blind spot": [i for i in measured if families[i] != SCORER_BLIND_SPOT],
        "problems solved at least once": [i for i in measured if solutions[i][0] in solvable],
        "problems never solved, with the others' right steps": [
            i for i in measured if solutions[i][0] not in solvable or solutions[i][1].first_error is None
        ],
    }
    rows = []
    for spec in ("llamacpp/lab-scorer", *map(str, run.args.scorer)):
        scorer = sw.load_scorer(spec, prompt=run.config.prompt)
        scores = scorer.score_batch([(s.question, s.steps) for _, s in solutions])
        scorer.close()
        threshold = threshold_of([scores[i] for i in chosen], [solutions[i][1] for i in chosen])
        for name, part in parts.items():
            found = measure_scores([scores[i] for i in part], [solutions[i][1] for i in part], threshold)
            rows.append((Path(spec).name, name, _band(found.auroc, 3), _band(found.f1, 1), f"{found.first_errors}"))
            run.metrics(scorer=spec, part=name, auroc=found.auroc, f1=found.f1, ece=found.ece)
    run.table("Against the truth", ("scorer", "on", "AUROC (95 %)", "F1, %", "errors"), rows)


def solved(config: Config, problems: list[LabProblem], samples: int) -> list[tuple[int, LabelledSolution]]:
    """Solutions of problems of the lab by the weak model, with true labels, and the number of the problem of each."""
    sampling, found = config.sampling, []
    with closing(sw.load_backend(config.models.weak, prompt=config.prompt)) as weak:
        asked = [
            Request(p.problem, stop="solution", max_tokens=512, n=samples, seed=11, temperature=sampling.temperature)
            for p in problems
        ]
        for text in weak.continue_solutions(asked):
            if steps := sw.split_steps(text.text):
                lab = problems[text.request]
                s = LabelledSolution.of_first_error(lab.problem.question, steps, lab.first_error(steps), "truth")
                found.append((text.request, s))
    return found


def _family(problem: LabProblem, s: LabelledSolution) -> str:
    """The family of the operation at the first error, "" without one."""
    first = s.first_error
    return problem.operations[first].family if first is not None and first < len(problem.operations) else ""


def _show_labels(run: Run[_Options], labels: Path) -> None:
    rows = read_attempts(labels)
    known = {lab.problem.question: lab for lab in generate("train", 5000)}
    wrong = [(row, known[row.question].first_error(row.steps)) for row in rows if not row.right and 0.0 in row.labels]
    right = [known[row.question].first_error(row.steps) for row in rows if row.right]
    hit = sum(row.labels.index(0.0) == truth for row, truth in wrong)
    run.say(f"first errors found: {len(wrong)}, the true one in {_band(wilson(hit, len(wrong)), 3)}")
    clean = sum(first is None for first in right)
    run.say(f"solutions that ended right: {len(right)}, without an error in {_band(wilson(clean, len(right)), 3)}")
    solved = [row for row in rows if not row.right and row.note != "never solved from the start"]
    run.say(f"undecided: {sum(row.note == 'undecided' for row in solved)} of {len(solved)} wrong solutions")


def _band(interval: Interval | None, digits: int) -> str:
    return "none" if interval is None else "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*interval, d=digits)


if __name__ == "__main__":
    sys.exit(main())
