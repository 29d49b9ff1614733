"""The server's page in a real browser, where there is one: its script runs under its own policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.browsing import BROWSER, browsed
from tests.report.markup import Elements
from tests.serve.conftest import Serve


def test_the_page_loads_nothing_from_elsewhere(serve: Serve) -> None:
    response = serve().get("/")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; connect-src 'self'; ")
    assert "http" not in response.text.replace('http-equiv="', "")


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: the page's script is not run")
def test_the_page_lists_the_models_and_its_console_stays_silent(serve: Serve, tmp_path: Path) -> None:
    client = serve()
    page, console = browsed(str(client.base_url), tmp_path, "--virtual-time-budget=10000")
    assert console == ""
    assert "router-always" in [attributes.get("value") for attributes in Elements(page).named("option")]
