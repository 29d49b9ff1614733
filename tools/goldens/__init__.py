"""What `tools/golden.py` records of a tree and how two records are compared; works on trees before and after a move."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any


def read(file: Path) -> dict[str, Any]:
    """What `golden.py record` wrote, parts by name."""
    data = file.read_bytes()
    found: dict[str, Any] = json.loads(gzip.decompress(data) if file.suffix == ".gz" else data)
    return found
