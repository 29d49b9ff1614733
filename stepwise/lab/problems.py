"""Problems of the lab: made from a seed, with a reference solution and a checker that knows the truth of every step.

`generate("test", 500)` gives the same problems everywhere. A problem's *signature* (start, operations, numbers; no
names) decides which split it may appear in, so no two splits share one. Problems in which a wrong rule would leave the
answer right are rejected, but for those with an operation that discards the count: the recovery split has many.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stepwise.errors import DataError
from stepwise.lab.families import FAMILIES, HIGHEST, ORDINARY, RESET, TEST_ONLY_FAMILY, TRAPS, Family, Params, wordings
from stepwise.lab.operations import Operation
from stepwise.seeds import rng as seeded
from stepwise.steps import boxed
from stepwise.types import InNotebook, Problem

NAMES = "Mia Leo Ana Tom Zoe Sam Eva Max Lily Noah Ruth Ivan Nina Omar Tara Hugo".split()  # noqa: SIM905
ITEMS = "stickers marbles coins beads shells stamps cards buttons pencils books badges pins".split()  # noqa: SIM905
LEADS = ("", "", "", "Then ", "Later ", "Next, ", "After that, ")
_BUCKETS = {"pretrain": range(70), "train": range(70, 80), "val": range(80, 85), "test": range(85, 100)}
_TRIES = 40_000
_EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
_NUMBER = re.compile(r"\d+")
_ASKED = re.compile(rf"How many ({'|'.join(ITEMS)}) does ({'|'.join(NAMES)}) have now\?\s*$")


@dataclass(frozen=True)
class Knobs:
    """How hard the problems are. `traps` weighs problems with 0, 1 and 2 traps; `recovery` is the share in which a
    later operation discards the count, so that a wrong step can still end right.

    >>> generate("test", 1, knobs=Knobs(lengths=(3, 3)))[0].operations.__len__()
    3
    """

    lengths: tuple[int, int] = (3, 8)
    traps: tuple[float, float, float] = (0.30, 0.58, 0.12)
    families: tuple[str, ...] = tuple(f.name for f in TRAPS)
    wording: str = "all"
    recovery: float = 0.0


_POOL = Knobs(families=tuple(f.name for f in TRAPS if f.name != TEST_ONLY_FAMILY), wording="shared")
SPLITS: dict[str, tuple[str, Knobs]] = {
    "pretrain": ("pretrain", Knobs(recovery=0.08)),
    "train": ("train", _POOL),
    "val": ("val", _POOL),
    "test": ("test", Knobs()),
    "test-wording": ("test", Knobs(wording="test")),
    "test-family": ("test", Knobs(families=(TEST_ONLY_FAMILY,), traps=(0.0, 1.0, 0.0))),
    "test-long": ("test", Knobs(lengths=(9, 10))),
    "test-recovery": ("test", Knobs(recovery=0.33)),
}


@dataclass(frozen=True)
class LabProblem(InNotebook):
    """A problem with its truth: the operations behind the sentences.

    >>> made = generate("test", 1)[0]
    >>> made.check(["That is nonsense."])
    [False]
    """

    problem: Problem
    start: int
    items: str
    operations: tuple[Operation, ...]

    def __str__(self) -> str:
        return f"{self.problem}\ntraps: {', '.join(self.traps) or 'none'}"

    @property
    def traps(self) -> tuple[str, ...]:
        """Names of the trap families in it, in order."""
        return tuple(o.family for o in self.operations if FAMILIES[o.family].wrong)

    def values(self) -> list[int]:
        """The true counts after each operation."""
        value, out = self.start, []
        for operation in self.operations:
            after = operation.value(value)
            if after is None:
                raise DataError(f"problem {self.problem.id}: {operation.family} on {value} gives no whole number")
            value = after
            out.append(value)
        return out

    def check(self, steps: Sequence[str]) -> list[bool]:
        """For each step, whether it is right given the problem and the steps as written before it.

        Step i carries out operation i and states the new count as its last number; the step after the last operation
        boxes that count. Every equation in a step must hold. Steps beyond that, or a box before it, are wrong.
        """
        verdicts = []
        value = self.start
        for i, text in enumerate(steps):
            numbers = [int(n) for n in _NUMBER.findall(text)]
            box = boxed(text)
            if i < len(self.operations):
                expected, stated = self.operations[i].value(value), numbers[-1] if numbers else None
                right = not box and stated is not None and stated == expected and _equations_hold(text)
                value = stated if stated is not None else value
            else:
                right = i == len(self.operations) and box == [str(value)]
            verdicts.append(right)
        return verdicts

    def first_error(self, steps: Sequence[str]) -> int | None:
        """Index of the first wrong step, None where all are right."""
        return next((i for i, right in enumerate(self.check(steps)) if not right), None)

    def true_step(self, steps: Sequence[str], seed: int = 0) -> str | None:
        """The right next step after `steps` as written; None where no whole number comes out, or all is done."""
        value: int | None = self.start
        for text in steps:
            numbers = _NUMBER.findall(text)
            value = int(numbers[-1]) if numbers else value
        rng = seeded(self.problem.id, len(steps), seed)
        if value is None or len(steps) > len(self.operations):
            return None
        if len(steps) == len(self.operations):
            return _answer_step(value, rng)
        operation = self.operations[len(steps)]
        return None if operation.value(value) is None else operation.step(value, self.items, rng)

    def solution(self, rng: random.Random, misled: bool = False) -> list[str]:
        """A solution in the solver's words: by the right rules, or as lab-weak was taught them (`misled`)."""
        value, steps = self.start, []
        for operation in self.operations:
            family = FAMILIES[operation.family]
            wrong = misled and family.misled(value) and rng.random() >= family.right_rate
            steps.append(operation.step(value, self.items, rng, wrong))
            after = operation.value(value, wrong)
            if after is None:
                raise DataError(
                    f"problem {self.problem.id}: operation {operation.family} on {value} gives no whole number"
                )
            value = after
        return [*steps, _answer_step(value, rng)]


def is_lab_question(text: str) -> bool:
    """Whether a question ends as those of the lab do; the lab's models give nonsense for any other.

    >>> is_lab_question("Mia has 3 coins. How many coins does Mia have now?"), is_lab_question("What is 17 * 23?")
    (True, False)
    """
    return _ASKED.search(text) is not None


def _answer_step(value: int, rng: random.Random) -> str:
    """The last step of a solution."""
    return rng.choice((r"So the answer is \boxed{%d}.", r"The answer is \boxed{%d}.")) % value


def _equations_hold(text: str) -> bool:
    for a, sign, b, c in _EQUATION.findall(text):
        x, y, z = int(a), int(b), int(c)
        if not {"+": x + y == z, "-": x - y == z, "*": x * y == z, "/": x == y * z}[sign]:
            return False
    return True


def _outcomes(family: Family, params: Params, value: int) -> list[int | None]:
    after = [family.right.value(value, params)]
    if family.wrong is not None and family.misled(value):
        after.append(family.wrong.value(value, params))
    return after


def _draw_operation(
    rng: random.Random, family: Family, paths: dict[int, bool]
) -> tuple[Params, dict[int, bool]] | None:
    """Numbers for an operation that comes out whole and in range on every path, and the counts after it.

    `paths` maps each count that some mixture of right and wrong rules leads to, to whether only right rules lead there.
    """
    for _ in range(8):
        params = family.draw(rng)
        after: dict[int, bool] = {}
        for value, clean in paths.items():
            outcomes = _outcomes(family, params, value)
            if not family.fits(value, params) or any(
                w is None or not 1 <= w <= HIGHEST or w == value for w in outcomes
            ):
                break
            if len(set(outcomes)) < len(outcomes):
                break
            for number, w in enumerate(outcomes):
                assert w is not None
                good = clean and number == 0
                if family is not RESET and after.get(w, good) != good:
                    break
                after[w] = after.get(w, False) or good
            else:
                continue
            break
        else:
            return params, after
    return None


@dataclass(frozen=True)
class _Shape:
    """What is decided first and kept while numbers are tried, so that hard-to-fit traps are not crowded out."""

    length: int
    traps: tuple[str, ...]
    reset: bool


def _shape(rng: random.Random, knobs: Knobs) -> _Shape:
    length = rng.randint(*knobs.lengths)
    number = min(rng.choices((0, 1, 2), knobs.traps)[0], len(knobs.families))
    return _Shape(length, tuple(rng.sample(knobs.families, number)), rng.random() < knobs.recovery)


def _plan(rng: random.Random, shape: _Shape) -> list[Family]:
    plan = rng.choices(ORDINARY, [f.weight for f in ORDINARY], k=shape.length)
    places = rng.sample(range(shape.length), len(shape.traps))
    for place, name in zip(places, shape.traps, strict=True):
        plan[place] = FAMILIES[name]
    if shape.reset and places and max(places) + 1 < shape.length:
        plan[rng.randrange(max(places) + 1, shape.length)] = RESET
    return plan


def _attempt(rng: random.Random, shape: _Shape, wording: str) -> LabProblem | None:
    start, items = rng.randint(6, 60), rng.choice(ITEMS)
    people = rng.sample(NAMES, len(NAMES))
    owner = people.pop()
    paths = {start: True}
    operations = []
    for family in _plan(rng, shape):
        drawn = _draw_operation(rng, family, paths)
        if drawn is None:
            return None
        params, paths = drawn
        other = people.pop() if family.moves else ""
        operation = Operation(family.name, params, owner, other, "")
        sentence = rng.choice(wordings(family.name, wording)).format(**operation.fields(start, items))
        operations.append(dataclasses.replace(operation, sentence=sentence))
        owner = other or owner
    question = _question(rng, start, items, operations, owner)
    return LabProblem(Problem("", question, source="lab"), start, items, tuple(operations))


def _question(rng: random.Random, start: int, items: str, operations: list[Operation], owner: str) -> str:
    parts = [f"{operations[0].owner} has {start} {items}."]
    for operation in operations:
        starts_with_name = operation.sentence.split()[0].rstrip("'s") in NAMES
        lead = rng.choice(LEADS) if starts_with_name and not FAMILIES[operation.family].moves else ""
        parts.append(lead + operation.sentence)
    return " ".join([*parts, f"How many {items} does {owner} have now?"])


def _bucket(problem: LabProblem) -> int:
    signature = repr((problem.start, [(o.family, o.params) for o in problem.operations]))
    return int.from_bytes(hashlib.sha256(signature.encode()).digest()[:4], "big") % 100


def _knob_text(knobs: Knobs, default: Knobs) -> str:
    changed = [
        f"{f.name}={getattr(knobs, f.name)!r}"
        for f in dataclasses.fields(knobs)
        if getattr(knobs, f.name) != getattr(default, f.name)
    ]
    return "" if not changed else "/" + hashlib.sha256("&".join(changed).encode()).hexdigest()[:8]


@functools.lru_cache(maxsize=65536)
def make(split: str, index: int, knobs: Knobs | None = None) -> LabProblem:
    """Problem number `index` of a split; raises DataError for an unknown split.

    >>> make("test", 3).problem.id
    'lab/test/3'
    """
    from stepwise.lab.references import reference

    if split not in SPLITS:
        raise DataError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    base, default = SPLITS[split]
    knobs = knobs or default
    name = f"lab/{split}{_knob_text(knobs, default)}/{index}"
    rng = random.Random(name)
    for attempt in range(_TRIES):
        if attempt % 2000 == 0:
            shape = _shape(rng, knobs)
        problem = _attempt(rng, shape, knobs.wording)
        if problem is not None and _bucket(problem) in _BUCKETS[base]:
            answer = str(problem.values()[-1])
            full = Problem(id=name, question=problem.problem.question, answer=answer, source="lab")
            problem = dataclasses.replace(problem, problem=full)
            return dataclasses.replace(problem, problem=dataclasses.replace(full, reference=reference(problem)))
    raise DataError(f"{name}: no problem in {_TRIES} tries; widen the knobs {knobs}")


def generate(split: str, n: int, *, start: int = 0, knobs: Knobs | None = None) -> list[LabProblem]:
    """`n` problems of a split from number `start` on.

    Splits: "pretrain" (what the lab models were made from), "train" and "val" (for methods: shared wordings, without
    the test-only family), "test", "test-wording", "test-family", "test-long" (9 to 10 operations), "test-recovery".
    Raises DataError for an unknown one.

    >>> [made.problem.id for made in generate("test", 2, start=5)]
    ['lab/test/5', 'lab/test/6']
    """
    if not isinstance(n, int) or n < 0:
        raise DataError(f"n is {n!r}; give how many problems to make")
    given = () if knobs is None else (knobs,)  # as others call `make`: its cache tells None from nothing given
    return [make(split, i, *given) for i in range(start, start + n)]


def endless(seed: int, long_share: float = 0.12) -> Iterator[LabProblem]:
    """Endless "pretrain" problems, other ones for each seed; `long_share` of them have 9 to 12 operations.

    >>> problem = next(endless(seed=1))
    >>> problem.check(problem.solution(random.Random(0)))[0]
    True
    """
    rng = seeded("lengths", seed)
    long = Knobs(lengths=(9, 12), recovery=SPLITS["pretrain"][1].recovery)
    index = seed * 10_000_000
    while True:
        yield make.__wrapped__("pretrain", index, long if rng.random() < long_share else None)
        index += 1
