"""A page in a real browser, where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
MORE = "--disable-component-update --disable-sync --disable-dev-shm-usage --enable-logging=stderr --dump-dom"


def played(page: Path, folder: Path, fragment: str = "", driver: str = "") -> tuple[str, str]:
    """The document after the script ran, and what the page wrote to the console.

    `driver` is a script that plays the reader; the page's own policy would refuse it, so it is taken out for that.
    """
    if driver:
        text = re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text(encoding="utf-8"))
        page.write_text(text.replace("</body>", f"<script>{driver}</script></body>"), encoding="utf-8")
    return browsed(page.as_uri() + fragment, folder)


def browsed(url: str, folder: Path, *flags: str) -> tuple[str, str]:
    """The document at an address after its script ran, and what it wrote to the console."""
    command = [str(BROWSER), *flags, *QUIET.split(), *MORE.split(), f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run([*command, url], capture_output=True, text=True, timeout=300, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, "\n".join(console)
