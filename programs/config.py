"""Print the annotated default configuration.

With --config or --set they are checked, and every setting that results is printed as JSON.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from stepwise.runs.shell import Run, program


@program(doc=__doc__)
def main(run: Run[Any]) -> None:
    if run.shared.config is None and not run.shared.set:
        print(files("stepwise.config").joinpath("lab.toml").read_text(encoding="utf-8"), end="")
        return
    print(json.dumps({"hash": run.config.hash, **run.config.model_dump(mode="json")}, indent=1))


if __name__ == "__main__":
    raise SystemExit(main())
