"""Take secrets out of text before it is printed or written."""

from __future__ import annotations

import os
import re

_KEY_SHAPES = re.compile(
    r"\b(?:sk|pk|rk|hf|gsk|xai|glpat|pypi|gh[pousr]|github_pat|xox[abprs])[-_][A-Za-z0-9_\-*.]{6,}"
    r"|\bAIza[A-Za-z0-9_\-]{10,}|\b(?:AKIA|ASIA)[A-Z0-9]{12,}|(?<=Bearer )[A-Za-z0-9._\-]{8,}"
)
_SECRET_NAMES = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD)$")
REDACTED = "[secret]"


def redact(text: str) -> str:
    """`text` without anything shaped like an API key and without the value of any environment variable named like one.

    Variables count when their name ends in KEY, TOKEN, SECRET or PASSWORD and their value has at least 8 characters.
    """
    values = {value for name, value in os.environ.items() if len(value) >= 8 and _SECRET_NAMES.search(name.upper())}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, REDACTED)
    return _KEY_SHAPES.sub(REDACTED, text)
