"""How many tokens go through the model at once: by a probe, against what is free, and the same when a run goes on."""

from __future__ import annotations

from typing import Any

import pytest

from stepwise.config.training import LoraConfig
from stepwise.errors import BackendError

torch = pytest.importorskip("torch")

from stepwise.training.memory import fitted  # noqa: E402

_ROW, _EACH = 100, 500_000  # tokens of the probe, bytes that each takes


def probe() -> None:
    torch.ones(_ROW * _EACH, dtype=torch.uint8)[-1].item()


def test_micro_batches_are_what_fits_into_free_memory_and_stay_so(caplog: pytest.LogCaptureFixture) -> None:
    state: dict[str, Any] = {}
    with caplog.at_level("INFO", "stepwise"):
        lora = fitted(LoraConfig(), "cpu", _ROW, probe, state, free=1_000_000_000)
    assert 800 < lora.micro_tokens < 2000  # 0.8 of 2,000 by the arithmetic; the pages of the process are not exact
    assert state == {"micro_tokens": lora.micro_tokens}
    assert "MB a token (a probe of 100)" in caplog.text
    assert "lowered from 8,192" in caplog.text

    def never() -> None:
        raise AssertionError("a run that goes on is not measured again")

    assert fitted(LoraConfig(), "cpu", _ROW, never, state, free=1) == lora


def test_memory_that_the_process_kept_from_earlier_work_hides_nothing() -> None:
    torch.ones(2_000_000, dtype=torch.uint8)  # once it is freed, glibc takes such sizes from the heap
    earlier = [torch.ones(1_900_000, dtype=torch.uint8) for _ in range(60)]
    pin = torch.ones(1_900_000, dtype=torch.uint8)  # behind them, so that the heap cannot shrink
    del earlier
    assert fitted(LoraConfig(), "cpu", _ROW, probe, {}, free=1_000_000_000).micro_tokens < 2000
    assert pin[-1] == 1


def test_where_memory_is_not_short_the_setting_stands() -> None:
    lora = LoraConfig(micro_tokens=3000)
    assert fitted(lora, "cpu", _ROW, probe, {}, free=1 << 50) is lora


def test_a_row_that_does_not_fit_is_refused_before_the_work() -> None:
    with pytest.raises(BackendError, match=r"a row of 100 tokens needs 0\.\d GB; leave long rows out"):
        fitted(LoraConfig(), "cpu", _ROW, probe, {}, free=20_000_000)
