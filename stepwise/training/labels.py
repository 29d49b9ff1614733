"""What credit schemes need besides outcomes (`Credit.needs`), who says it, and what that costs.

A rollout about which nothing can be found out (its judge failed) is masked. What differs from the papers:
1. VinePPO (arXiv 2410.01679): rollouts that begin alike share the estimates of what they have in common, and a
   continuation that comes to no answer has not succeeded.
2. CAPO (2508.02298): a critique is one pass of an ErrorLocalizer, shown the reference; one that stops at the first
   error names that step alone.
3. OPPO (2605.21851): the oracle is the reference solution, or the answer where there is none, after the question in the
   prompt of the policy itself.
4. Distillation: the student's log-probabilities are the sampler's, as it wrote.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stepwise import credit, critics
from stepwise.config import Config
from stepwise.data.localization import first_below
from stepwise.errors import BackendError, ConfigError, DataError
from stepwise.grading import Verdict, grade_many
from stepwise.models.engine import Engine
from stepwise.models.lab_judges import critics_of, refuse_lab_judge
from stepwise.models.scorers import load_scorer
from stepwise.models.scorers.base import Scorer, score_items
from stepwise.models.shared import load_engine, shared_engine
from stepwise.models.wrappers import Wrappers
from stepwise.seeds import seed_for
from stepwise.steps import extract_answer
from stepwise.training.crediting import Labels
from stepwise.training.lora import Trainee
from stepwise.training.policy import Floats, RolloutRow, forward, read_logprobs
from stepwise.training.rendering import prompt_ids
from stepwise.training.rollouts import RlRollout
from stepwise.training.sampler import Sampler, check_paid
from stepwise.types import Problem, Usage

Locate = Callable[[Problem, Sequence[str]], int | None]
_WARM = 0.7  # temperature of the critic where several critiques of a rollout are asked for and none is set
Labelled = tuple[list[Labels], Usage, int | None]
"""Labels, what they cost, and the parameters of the model that spent it (None where it does not say)."""
_NO_STEPS: Mapping[str, Any] = {"first_error": 0, "scores": (0.0,), "critiques": ((0,),)}  # a text without steps


class Labeller:
    """Finds out what `rl.credit.scheme` wants to know of each rollout: by the judge given, else by the scorer, critic
    or teacher (models.strong) that the configuration has. `problems` and `prompts` are by problem id.

    `reset_cache` empties the caches of judges, so that what they say does not depend on steps before; `close` frees
    those that were loaded here. Raises what `judge_asked` and loading raise.

    Example:
        labeller = Labeller(config, problems, prompts, sampler, trainee, scorer=scorer)
        labels, usage, size = labeller.label(rollouts)
    """

    def __init__(
        self,
        cfg: Config,
        problems: Mapping[str, Problem],
        prompts: Mapping[str, tuple[int, ...]],
        sampler: Sampler,
        trainee: Trainee,
        *,
        scheme: credit.Credit | None = None,
        scorer: Any = None,
        critic: Any = None,
        locate: Locate | None = None,
        teacher: Any = None,
    ) -> None:
        self.cfg, self.problems, self.prompts, self.sampler, self.trainee = cfg, problems, prompts, sampler, trainee
        self.scorer, self.critic, self.locate, self.teacher = scorer, critic, locate, teacher
        self.critic_size: int | None = None
        self._loaded: Any = None
        self._cached = scorer if teacher is None else teacher
        self.scheme = credit.load_credit(cfg.rl.credit) if scheme is None else scheme
        judge = self.judge_asked(cfg, self.scheme.needs, scorer=scorer, critic=critic, locate=locate, teacher=teacher)
        asked = {"scorer": scorer or cfg.scorer, "critic": critic or critics_of(cfg)["localizer"]}.get(judge)
        if asked is not None:
            refuse_lab_judge(asked, judge, cfg.models.weak, cfg.allow_lab)
        if judge == "scorer" and scorer is None:
            self.scorer = self._loaded = self._cached = load_scorer(cfg.scorer, prompt=cfg.prompt, weak=cfg.models.weak)
        elif judge == "teacher" and teacher is None:
            self.teacher = self._loaded = self._cached = load_engine(cfg.models.strong, curve=None)  # it only reads
        elif judge == "critic" and critic is None:
            self.critic = self._load_critic()
            if cfg.models.critic.local:
                self._cached = shared_engine(cfg.models.critic)
                self.critic_size = self._cached.parameters

    @staticmethod
    def judge_asked(cfg: Config, need: str, **given: Any) -> str:
        """Whom a scheme with that `need` asks: "scorer", "critic", "locate", "teacher", or "" where it asks nobody.

        Raises ConfigError where a judge is `given` (by these names) and not asked, `locate` is asked and not given, or
        the teacher is not local.
        """
        settings, strong = cfg.rl.credit, cfg.models.strong
        judge = {"scores": "scorer", "critiques": "critic", "teacher": "teacher"}.get(need, "")
        if need == "first_error":
            judge = "locate" if settings.first_error == "given" else settings.first_error
        for name, value in given.items():
            if value is not None and name != judge:
                raise ConfigError(
                    f'{name} is given, but rl.credit.scheme = "{settings.scheme}" with first_error = '
                    f'"{settings.first_error}" asks {judge or "nobody"}; leave it out, or change the scheme'
                )
        if judge == "locate" and given.get("locate") is None:
            raise ConfigError(
                'rl.credit.first_error is "given", but no function was; give grpo locate(problem, steps), or set '
                'first_error to "scorer" or "critic"'
            )
        if judge == "teacher" and not strong.local:
            raise ConfigError(
                f'models.strong.model is "{strong.model}", but rl.credit.scheme = "distill" needs the log-probabilities'
                ' of every token, from the in-process engine; write "llamacpp/PATH.gguf", or choose another scheme'
            )
        return judge

    def reset_cache(self) -> None:
        """Forget what was read; a scorer that keeps nothing has nothing to forget."""
        if isinstance(self._cached, Engine | Scorer):
            self._cached.reset_cache()

    def close(self) -> None:
        """Free the judge that was loaded here."""
        if self._loaded is not None:
            self._loaded.close()

    def label(self, rollouts: Sequence[RlRollout], logprobs: Sequence[Floats] | None = None) -> Labelled:
        """The labels of each rollout, what they cost, and the size of the model that spent it.

        `own` has the trainer's log-probabilities of each rollout's tokens, for the scheme that compares them. Raises
        BackendError where a judge is not there, DataError for a step that `locate` names and the rollout has not.
        """
        labels, to_label = [Labels() for _ in rollouts], []
        need = self.scheme.needs
        if not need:
            return labels, Usage(), 0
        for i, row in enumerate(rollouts):
            wanted = row.reward is not None and not (need == "first_error" and row.reward)
            if need == "teacher":
                wanted = bool(row.token_ids) and row.finish != "error"
            if wanted and not row.steps and need in _NO_STEPS:  # wrong as a whole, which needs no judge
                labels[i] = Labels(**{need: _NO_STEPS[need]})
            elif wanted:
                to_label.append(i)
        rows = [rollouts[i] for i in to_label]
        if need == "evidence":
            if logprobs is None:
                raise DataError("there are no log-probabilities of the trainer to compare with; give those of a pass")
            new_labels, usage, size = self._evidence(rows, [logprobs[i] for i in to_label])
        else:
            label_by = {
                "first_error": self._first_errors,
                "scores": self._scores,
                "values": self._values,
                "critiques": self._critiques,
                "teacher": self._teacher_gaps,
            }[need]
            new_labels, usage, size = label_by(rows)
        for i, label in zip(to_label, new_labels, strict=True):
            labels[i] = label
        return labels, usage, size

    def _load_critic(self) -> critics.ErrorLocalizer:
        cfg = self.cfg
        several = self.scheme.needs == "critiques" and cfg.rl.credit.critiques > 1
        if several and not cfg.critic.temperature:
            cfg = cfg.model_copy(update={"critic": cfg.critic.model_copy(update={"temperature": _WARM})})
        return critics.ErrorLocalizer.from_config(cfg)

    def _first_errors(self, rows: Sequence[RlRollout]) -> Labelled:
        """The first error of each wrong rollout, by the judge that `rl.credit.first_error` names."""
        settings = self.cfg.rl.credit
        if settings.first_error == "scorer":
            labels, usage, size = self._scores(rows)
            for i, label in enumerate(labels):
                if label.scores is not None:
                    labels[i] = dataclasses.replace(label, first_error=first_below(label.scores, settings.threshold))
            return labels, usage, size
        if settings.first_error == "critic":
            predictions, usage = self._ask_critic([(row, ("locate",)) for row in rows], "locating")
            labels = [
                Labels(failed=prediction.failure) if prediction.failure else Labels(prediction.first_error)
                for prediction in predictions
            ]
            return labels, usage, self.critic_size
        assert self.locate is not None
        places = [self.locate(self.problems[row.problem], row.steps) for row in rows]
        for row, place in zip(rows, places, strict=True):
            if place is not None and not 0 <= place < len(row.steps):
                raise DataError(
                    f"locate named step {place} of rollout {row.id!r}, which has {len(row.steps)}; it must return a "
                    "0-based step, or None"
                )
        return [Labels(place) for place in places], Usage(), 0

    def _scores(self, rows: Sequence[RlRollout]) -> Labelled:
        """The scorer's probability that each step is right."""
        scored = score_items(self.scorer, [(self.problems[row.problem], row.steps) for row in rows])
        _check_failures(f"scorer {self.scorer.name!r}", [result.error for result in scored])
        labels = [
            Labels(failed=result.error) if result.error else Labels(scores=tuple(result.scores)) for result in scored
        ]
        return labels, sum((result.usage for result in scored), Usage()), self.scorer.parameters

    def _critiques(self, rows: Sequence[RlRollout]) -> Labelled:
        """`rl.credit.critiques` critiques of each rollout; those that failed are left out."""
        number, labels = self.cfg.rl.credit.critiques, []
        predictions, usage = self._ask_critic(
            [(row, ("critique", k)) for row in rows for k in range(number)], "criticizing"
        )
        for first in range(0, len(predictions), number):
            of_row = predictions[first : first + number]
            votes = tuple(_wrong_steps(prediction) for prediction in of_row if prediction.failure is None)
            labels.append(Labels(critiques=votes) if votes else Labels(failed=str(of_row[0].failure)))
        return labels, usage, self.critic_size

    def _ask_critic(self, to_label: Sequence[tuple[RlRollout, tuple[Any, ...]]], label: str) -> tuple[list[Any], Usage]:
        """The critic's prediction about each rollout; what stands beside it is for its seed."""
        items = [{"problem": self.problems[row.problem], "steps": list(row.steps)} for row, _ in to_label]
        seeds = [seed_for(self.cfg.seed, row.id, *name) for row, name in to_label]
        around = Wrappers(self.sampler.ledger, self.cfg.prompt, run=self.cfg.hash)
        predictions = critics.ask_all(self.critic, items, seeds, label=label, around=around)
        check_paid(prediction.get("error") for prediction in predictions)
        return predictions, sum((prediction.usage for prediction in predictions), Usage())

    def _values(self, rows: Sequence[RlRollout]) -> Labelled:
        """The share of `rl.credit.continuations` fresh continuations that end right, from the prompt, from behind each
        step but the last, and the outcome itself.

        A boundary of which nothing could be judged has the value of the one before it (the prompt: 1/2).
        """
        prefixes: dict[tuple[int, ...], tuple[RlRollout, int]] = {}  # token ids -> whose they are, how many are sampled
        for row in rows:
            for start, _ in row.spans:
                prefixes.setdefault((*self.prompts[row.problem], *row.token_ids[:start]), (row, start))
        shares, usage = self._success(prefixes)
        labels = []
        for row in rows:
            values = [0.5]
            for start, _ in row.spans or ((0, 0),):
                share = shares.get((*self.prompts[row.problem], *row.token_ids[:start]))
                values.append(values[-1] if share is None else share)
            labels.append(Labels(values=(*values[1:], row.reward or 0.0)))
        return labels, usage, self.sampler.engine.parameters

    def _success(
        self, prefixes: Mapping[tuple[int, ...], tuple[RlRollout, int]]
    ) -> tuple[dict[tuple[int, ...], float | None], Usage]:
        """The share of fresh continuations of each prefix that end right, None where none could be judged."""
        rl, engine, owners = self.cfg.rl, self.sampler.engine, list(prefixes.values())
        results = self.sampler.generate(
            [self.problems[row.problem] for row, _ in owners],
            list(prefixes),
            num_samples=rl.credit.continuations,
            max_tokens=[max(1, rl.max_tokens - start) for _, start in owners],
            seeds=[seed_for(self.cfg.seed, row.id, "value", start) for row, start in owners],
        )
        answers = []
        for result in results:
            row, start = owners[result.request]
            written = engine.detokenize(row.token_ids[:start]).decode("utf-8", "replace") + result.text
            answers.append((extract_answer(written), self.problems[row.problem].answer))
        judged: list[list[Verdict]] = [[] for _ in owners]
        for result, verdict in zip(results, grade_many(answers), strict=True):
            if result.finish != "error" and (verdict.carries_reward or verdict is Verdict.NO_ANSWER):
                judged[result.request].append(verdict)
        shares = [verdicts.count(Verdict.CORRECT) / len(verdicts) if verdicts else None for verdicts in judged]
        usage = Usage(
            generated_tokens=sum(result.usage.generated_tokens for result in results),
            evaluated_tokens=sum(result.usage.evaluated_tokens for result in results),
        )
        return dict(zip(prefixes, shares, strict=True)), usage

    def _evidence(self, rows: Sequence[RlRollout], without_oracle: Sequence[Floats]) -> Labelled:
        """Log p(token | oracle) - log p(token) under the policy as it is."""
        room = self.trainee.context
        failed = Labels(failed=f"with the oracle in its prompt it is longer than the context of {room} tokens")
        prompts = {name: self.oracle_prompt(self.problems[name]) for name in {row.problem for row in rows}}
        with_oracle = [RolloutRow(tuple(prompts[row.problem]), row.token_ids) for row in rows]
        labels, fits = [failed] * len(rows), [i for i, row in enumerate(with_oracle) if row.length <= room]
        logprobs, _ = forward(self.trainee, [with_oracle[i] for i in fits], self.cfg)
        for i, line in zip(fits, logprobs, strict=True):
            labels[i] = Labels(evidence=line - without_oracle[i])
        usage = Usage(evaluated_tokens=sum(with_oracle[i].length for i in fits))
        return labels, usage, self.sampler.engine.parameters

    def oracle_prompt(self, problem: Problem) -> list[int]:
        """Token ids of the prompt with the reference solution, or the answer, after the question."""
        oracle = (
            f"Reference solution:\n{problem.reference}" if problem.reference else f"The answer is {problem.answer}."
        )
        return prompt_ids(self.trainee.tokenizer, self.cfg.prompt, f"{problem.question}\n\n{oracle}")

    def _teacher_gaps(self, rows: Sequence[RlRollout]) -> Labelled:
        """Log p(token) of the teacher less the sampler's, of rollouts with and without a reward."""
        read, evaluated = read_logprobs(self.teacher, [(self.prompts[row.problem], row.token_ids) for row in rows])
        _check_failures(self.teacher.name, [line if isinstance(line, str) else "" for line in read])
        labels = [
            Labels(failed=line) if isinstance(line, str) else Labels(teacher=line - np.array(row.logprobs))
            for line, row in zip(read, rows, strict=True)
        ]
        return labels, Usage(evaluated_tokens=evaluated), self.teacher.parameters


def _wrong_steps(prediction: Any) -> tuple[int, ...]:
    """The steps that an ErrorLocalizer's prediction calls wrong: the first error, and what its checks say after it."""
    if prediction.first_error is None:
        return ()
    later = (i for i, right in enumerate(prediction.verdicts) if not right and i > prediction.first_error)
    return (int(prediction.first_error), *later)


def _check_failures(judge: str, errors: Sequence[str]) -> None:
    """Raise BackendError where most of the rollouts failed; `errors` has "" for the others."""
    failed = [error for error in errors if error]
    if 2 * len(failed) > len(errors):
        raise BackendError(f"{judge} failed for {len(failed)} of {len(errors)} rollouts, first: {failed[0]}")
