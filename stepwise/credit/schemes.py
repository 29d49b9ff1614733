"""Credit schemes: pure functions from a group of rollouts to advantages per token, (B, T) float64.

R_i is the reward of rollout i, o_i its sampled tokens, k(t) the step of token t. Means over rollouts leave out those
without a reward; they (but for `distill`), padding and forced tokens have advantage 0. What differs from the papers:
1. Nothing is divided by a standard deviation unless `scale` is set (GRPO and CAPO).
2. `first_error` and `shuffled` are not from a paper.
3. VPPO's prefix is shortened by a share of the rollout, not by the prompt's length; where a wrong rollout has no
   located error, no prefix of it is rewarded.
4. CAPO's weights are fixed at the best published ones, 2 and 1.
5. In PURE the outcome is always part of the advantage, at weight 1.
6. OPPO's value follows log odds, not Bayes' rule (see there), and has no direction anchoring.
7. `distill` is on-policy distillation (GKD, MiniLLM) as a credit: the divergence is estimated at the sampled token
   alone, not over the vocabulary, and what a token does to later ones is left out, as in GKD.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from stepwise.credit.group import Array, Group, needed

EPSILON = 1e-4  # added to standard deviations, as TRL does
_BLAME = -1.0
_TEMPERATURE = 0.1  # of PURE's soft minimum


def outcome(group: Group, *, scale: bool = False, leave_one_out: bool = False) -> Array:
    """A = R_i - mean_j R_j on every token of rollout i: Dr. GRPO, arXiv 2503.20783, section 3.2.

    With `scale`, GRPO's (arXiv 2402.03300, section 4.1.2): divided by the standard deviation of the rewards (with
    n - 1) plus 1e-4. With `leave_one_out`, RLOO's (arXiv 2402.14740): the mean is that of the other rollouts, so that A
    is n / (n - 1) times as large. 0 where all outcomes are equal, or only one rollout has a reward.

    Example:
        >>> import numpy as np
        >>> spans = (((0, 1), (1, 2)),) * 2  # two steps of one token each
        >>> group = Group([1.0, 0.0], np.ones((2, 2), dtype=bool), spans)
        >>> outcome(group).tolist()
        [[0.5, 0.5], [-0.5, -0.5]]
    """
    rewards = group.rewards[group.rewarded]
    advantage = np.zeros(len(group.rewards))
    if len(rewards) > 1:
        baseline = (rewards.sum() - rewards) / (len(rewards) - 1) if leave_one_out else rewards.mean()
        deviation = rewards.std(ddof=1) + EPSILON if scale else 1.0
        advantage[group.rewarded] = (rewards - baseline) / deviation
    return _on_tokens(group, advantage[:, None])


def first_error(group: Group, *, blame: Literal["step", "rest"] = "step") -> Array:
    """A = -1 on the step of the first error of a wrong rollout, 0 on its other steps; R_i - mean_j R_j where right.

    Ours (derived). Where errors absorb (a solution that has one ends wrong), the true advantage is >= 0 before the
    error, -V at it, and 0 after it, V the success rate just before. V is taken as 1, that of a prefix that is right so
    far, and not as the group's mean, which is 0 where all are wrong: such a group blames its errors as any other does.

    A right rollout gets what `outcome` gives it, whatever error was located in it. A wrong rollout without a located
    error gets what `outcome` gives it too: -mean_j R_j on every token, which is 0 where all are wrong. With
    blame="rest", all tokens from the error on get -1.

    Example:
        >>> import numpy as np
        >>> spans = (((0, 1), (1, 2)),) * 2  # two steps of one token each
        >>> group = Group([1.0, 0.0], np.ones((2, 2), dtype=bool), spans, first_error=(None, 1))
        >>> first_error(group).tolist()
        [[0.5, 0.5], [0.0, -1.0]]
    """
    located = needed(group.first_error, "first_error")
    advantage = outcome(group)
    for i in group.wrong:
        if (step := located[i]) is not None:
            start, stop = group.spans[i][step]
            advantage[i] = 0.0
            advantage[i, start : stop if blame == "step" else None] = _BLAME
    return _on_tokens(group, advantage)


def shuffled(group: Group, *, blame: Literal["step", "rest"] = "step", seed: int = 0) -> Array:
    """The advantages of `first_error`, the steps of each rollout put in a random order: a control (ours).

    Every rollout keeps its advantages, token for token, and a blamed stretch its length; only where they stand is
    lost. The order follows from `seed` and the rollout's index; give every group another seed. The right place comes up
    by chance, once in as many times as there are steps.

    Example:
        >>> import numpy as np
        >>> spans = (((0, 1), (1, 2)),) * 2  # two steps of one token each
        >>> group = Group([1.0, 0.0], np.ones((2, 2), dtype=bool), spans, first_error=(None, 1))
        >>> sorted(shuffled(group, seed=3)[1].tolist())
        [-1.0, 0.0]
    """
    advantage = first_error(group, blame=blame)
    for i, (row, spans) in enumerate(zip(advantage, group.spans, strict=True)):
        if len(spans) > 1:
            steps = [row[start:stop][group.mask[i, start:stop]] for start, stop in spans]
            order = np.random.default_rng((seed, i)).permutation(len(steps))
            row[group.mask[i]] = np.concatenate([steps[k] for k in order])
    return advantage


def vppo(group: Group, *, alpha: float = 0.5, shorten: float = 0.1, relu: bool = False) -> Array:
    """A = r_it - mean_j r_j; r_it is 1 where right, alpha on the rewarded prefix of a wrong rollout, else 0.

    VPPO, arXiv 2601.18984. r_j is the mean over the tokens of rollout j: 1 where right, else alpha |RP_j| / |o_j|. The
    rewarded prefix RP is what stands before the first error, without its last tokens: the share `shorten` of |o|,
    rounded, which is >= 0 and < 1. Without that, models learn to split steps. With `relu`, A is not negative on RP (the
    paper's setting for instruct models).

    Identical wrong rollouts get alpha (1 - f) on RP and -alpha f elsewhere, f = |RP| / |o|. Errors located in right
    rollouts are not read. A wrong rollout without a located error has no rewarded prefix (derived).

    Example:
        >>> import numpy as np
        >>> spans = (((0, 1), (1, 2)),) * 2  # two steps of one token each
        >>> group = Group([1.0, 0.0], np.ones((2, 2), dtype=bool), spans, first_error=(None, 1))
        >>> vppo(group, shorten=0.0).round(3).tolist()
        [[0.375, 0.375], [-0.125, -0.625]]
    """
    located = needed(group.first_error, "first_error")
    prefix = np.zeros_like(group.mask)
    for i in group.wrong:
        if (step := located[i]) is not None:
            sampled = np.flatnonzero(group.mask[i])
            good = sampled[sampled < group.spans[i][step][0]]
            prefix[i, good[: max(0, len(good) - round(shorten * len(sampled)))]] = True
    rewards = np.nan_to_num(group.rewards)  # (B,); those without a reward are left out below
    shares = prefix.sum(axis=1) / np.maximum(group.mask.sum(axis=1), 1)
    mean = _mean((rewards + alpha * shares)[group.rewarded])
    advantage = rewards[:, None] + alpha * prefix - mean
    if relu:
        advantage = np.where(prefix, np.maximum(advantage, 0.0), advantage)
    return _on_tokens(group, advantage)


def vineppo(group: Group) -> Array:
    """A = V(s_{k+1}) - V(s_k) on every token of step k: VinePPO, arXiv 2410.01679.

    s_k is the prefix before step k; V is the success rate of fresh rollouts from there (`Group.values`), and the last
    one the outcome, so that the steps of a rollout add up to R - V(s_0). With exact values this is the true advantage:
    the upper bound that other schemes are compared with.

    Example:
        >>> import numpy as np
        >>> spans = (((0, 1), (1, 2)),) * 2  # two steps of one token each
        >>> group = Group([1.0, 0.0], np.ones((2, 2), dtype=bool), spans, values=((0.5, 0.75, 1.0), (0.5, 0.5, 0.0)))
        >>> vineppo(group).tolist()
        [[0.25, 0.25], [0.0, -0.5]]
    """
    values = needed(group.values, "values")
    return _by_step(group, {i: np.diff(values[i]).tolist() for i in _rewarded(group)})


def capo(
    group: Group, *, agree: Literal["intersection", "majority", "union"] = "majority", scale: bool = False
) -> Array:
    """A = u_it - mean u; u_it = 2 R_i - 1[k(t) is called wrong]; the mean is over all tokens of the group.

    CAPO, arXiv 2508.02298, weights 2 and 1. A step is called wrong by all critiques (intersection), by more than half
    of them (majority) or by any (union). Wrong steps of right rollouts are penalised too. With `scale`, divided by the
    standard deviation of u over the group's tokens (with n - 1) plus 1e-4; that both are taken over tokens is derived.

    Example:
        >>> import numpy as np
        >>> spans = (((0, 1), (1, 2)),) * 2  # two steps of one token each
        >>> group = Group([1.0, 0.0], np.ones((2, 2), dtype=bool), spans, critiques=(((),), ((1,),)))
        >>> capo(group).tolist()
        [[1.25, 1.25], [-0.75, -1.75]]
    """
    critiques = needed(group.critiques, "critiques")
    rows = {}
    for i in _rewarded(group):
        votes = np.zeros(len(group.spans[i]))
        for said in critiques[i]:
            votes[list(said)] += 1  # once, however often a critique names the step
        most = len(critiques[i])
        called = {"intersection": votes == most, "majority": votes > most / 2, "union": votes > 0}[agree]
        rows[i] = (2.0 * group.rewards[i] - called).tolist()
    advantage = _centred(group, _by_step(group, rows))
    if scale and group.tokens.sum() > 1:
        advantage /= advantage[group.tokens].std(ddof=1) + EPSILON
    return advantage


def pure_min(group: Group) -> Array:
    """A = sum over steps j >= k(t) of (w_j r_j - b_i n_j), plus RLOO's R_i - mean of the others' R.

    PURE, arXiv 2504.15275, as its published code has it. r_j = 2 s_j - 1 from the score s_j of step j, n_j its sampled
    tokens, w = softmax(-r / 0.1) over the steps of the rollout: nearly all weight is on the lowest score, so that the
    value of a step is about the minimum of the scores from it on, not their sum, and about 0 past the lowest. b_i is
    the mean of w r per token over the other rollouts (0 without others). That the outcome is added at weight 1 is
    derived; PURE's runs with verifiable rewards add it with a weight that is an option there.

    Identical wrong rollouts whose lowest score is under 1/2: the first step gets 0, advantages fall from there to the
    lowest score, and are positive past it (no minimum is left to come, while the others' mean has one).

    Example:
        >>> import numpy as np
        >>> spans = (((0, 1), (1, 2)),) * 2  # two steps of one token each
        >>> group = Group([1.0, 0.0], np.ones((2, 2), dtype=bool), spans, scores=((0.9, 0.8), (0.9, 0.1)))
        >>> pure_min(group).round(2).tolist()
        [[2.42, 1.93], [-2.42, -2.11]]
    """
    scores = needed(group.scores, "scores")
    reward, length = {}, {}
    for i in _rewarded(group):
        r = 2 * np.array(scores[i], dtype=np.float64) - 1
        weight = np.exp((r.min(initial=1.0) - r) / _TEMPERATURE)
        reward[i] = r * weight / weight.sum()
        length[i] = np.array([group.mask[i, start:stop].sum() for start, stop in group.spans[i]], dtype=np.float64)
    rows = {}
    for i in reward:
        others = sum(length[j].sum() for j in length if j != i)
        baseline = sum(reward[j].sum() for j in reward if j != i) / others if others else 0.0
        rows[i] = np.cumsum((reward[i] - baseline * length[i])[::-1])[::-1].tolist()
    return _by_step(group, rows) + outcome(group, leave_one_out=True)


def oppo(group: Group, *, evidence_clip: float = 1.0) -> Array:
    """A_t = V_t - V_{t-1}, logit V_t = logit V_{t-1} + clip(e_t): OPPO, arXiv 2605.21851, log-odds approximation.

    e_t = log p(token | oracle) - log p(token) (`Group.evidence`), clipped to +-`evidence_clip` > 0. The form is
    derived. Bayes' rule itself is V_t = V_{t-1} exp(e_t), the marginal in the denominator; it holds only where
    p(. | oracle) is the policy given success. A model that reads the oracle is not, and the product then leaves [0, 1];
    log odds do not. They move less: with V = .5 and e = log(.9 / .5), Bayes says .9, log odds .643.

    V_0 is the mean reward of the other rollouts, kept 1 / (2 n) away from 0 and 1 (n rollouts with a reward; 1/2 where
    it is the only one). V at the last token is set to R, so that the tokens of a rollout add up to R - V_0.

    Example:
        >>> import numpy as np
        >>> spans = (((0, 1), (1, 2)),) * 2  # two steps of one token each
        >>> group = Group([1.0, 0.0], np.ones((2, 2), dtype=bool), spans, evidence=np.array([[0.4, 0.2], [-0.3, -0.5]]))
        >>> oppo(group).round(2).tolist()
        [[0.08, 0.67], [-0.06, -0.69]]
    """
    evidence = needed(group.evidence, "evidence")
    advantage = np.zeros(group.mask.shape)
    count, total = int(group.rewarded.sum()), float(np.nansum(group.rewards))
    for i in _rewarded(group):
        others = (total - group.rewards[i]) / max(count - 1, 1)
        start = float(np.clip(others, 1 / (2 * count), 1 - 1 / (2 * count)))
        steps = np.clip(evidence[i, group.mask[i]], -evidence_clip, evidence_clip)
        odds = np.log(start / (1 - start)) + np.cumsum(steps)
        value = np.concatenate([[start], (1 + np.tanh(odds / 2)) / 2])
        if len(steps):
            value[-1] = group.rewards[i]
        advantage[i, group.mask[i]] = np.diff(value)
    return advantage


def distill(group: Group, *, clip: float = 5.0) -> Array:
    """A_t = log p_teacher(y_t | prefix) - log p_student(y_t | prefix), clipped to +-`clip` > 0 nats; no baseline.

    On the student's own samples its mean is minus the reverse divergence KL(student || teacher) of each next token,
    and the policy gradient with it is that divergence's, the prefix held fixed: GKD, arXiv 2306.13649, eq. 3 with all
    data on-policy and reverse KL. MiniLLM (arXiv 2306.08543, section 2.2) adds the sum over later tokens, which has
    more variance. The outcome is not read, so that rollouts without a reward are trained on too; only tokens of which
    nothing is known (nan) are not.

    Example:
        >>> import numpy as np
        >>> spans = (((0, 1), (1, 2)),) * 2  # two steps of one token each
        >>> group = Group([1.0, 0.0], np.ones((2, 2), dtype=bool), spans, teacher=np.array([[0.1, -0.2], [7.0, 0.0]]))
        >>> distill(group).tolist()
        [[0.1, -0.2], [5.0, 0.0]]
    """
    gaps = needed(group.teacher, "teacher")
    return np.where(group.mask & ~np.isnan(gaps), np.clip(gaps, -clip, clip), 0.0)


def _rewarded(group: Group) -> list[int]:
    return [int(i) for i in np.flatnonzero(group.rewarded)]


def _on_tokens(group: Group, advantage: Array) -> Array:
    """(B, T) or (B, 1) to (B, T), 0 where no advantage can be."""
    return np.where(group.tokens, advantage, 0.0)


def _by_step(group: Group, rows: Mapping[int, Sequence[float]]) -> Array:
    """(B, T): each sampled token of step k of rollout i gets rows[i][k]; 0 elsewhere and in rollouts without a row."""
    out = np.zeros(group.mask.shape)
    for i, row in rows.items():
        for (start, stop), value in zip(group.spans[i], row, strict=True):
            out[i, start:stop] = value
    return _on_tokens(group, out)


def _centred(group: Group, values: Array) -> Array:
    """(B, T) less the mean over the group's tokens."""
    return _on_tokens(group, values - _mean(values[group.tokens]))


def _mean(values: Array) -> float:
    """0 of nothing: there is then nothing that it would be subtracted from."""
    return float(values.mean()) if values.size else 0.0
