"""A model that fails behind the server: every request has its reply, and what was billed is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals import served_faults


@pytest.mark.parametrize("fault", ["connection reset before the reply", "not JSON", "nested 100,000 deep"])
def test_a_reply_that_is_lost_or_cannot_be_read_is_perhaps_billed_and_asked_for_again(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert served_faults.main(["--requests", "6", "--faults", fault, "--out", str(tmp_path / "out")]) == 0
    (row,) = json.loads((tmp_path / "out" / "served_faults.json").read_text())
    assert (row["answered"], row["marked"], row["refused"], row["lost"], row["again"]) == (6, 0, 0, 0, 0)
    assert (row["billed"], row["counted"], row["perhaps"]) == (6 + row["injected"], 6, row["injected"])
    assert row["injected"] == 2  # the first and the sixth of eight requests
    assert served_faults.main(["--faults", "an earthquake", "--out", str(tmp_path / "other")]) == 2
    assert "no such fault" in capsys.readouterr().err
