"""The labelled proposals and what the form check makes of them; the figures stand in docs/training.md."""

from __future__ import annotations

from collections import Counter

import pytest

from evals.form import main, rows


def test_there_are_sixty_proposals_half_of_them_unseen_when_the_rules_were_fixed() -> None:
    labelled = rows()
    assert len({row["id"] for row in labelled}) == len(labelled) >= 60
    assert min(Counter(row["half"] for row in labelled).values()) >= 30
    assert sum(row["good"] for row in labelled) >= 20
    assert all(row["good"] != bool(row["fault"]) for row in labelled)


def test_no_good_proposal_is_dropped_and_few_bad_ones_pass(capsys: pytest.CaptureFixture[str]) -> None:
    labelled = rows()
    assert not [row["id"] for row in labelled if row["good"] and row["found"]]
    bad = [row for row in labelled if not row["good"]]
    assert sum(not row["found"] for row in bad) <= 0.1 * len(bad)
    main()
    assert "unseen: good ones dropped: 0 of " in capsys.readouterr().out
