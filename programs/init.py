"""Write a configuration for models of your own, with comments: what their files say, and what was chosen by it.

stepwise init WEAK.gguf STRONG.gguf --file mine.toml
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from stepwise.config import Config, LoadConfig, model_name
from stepwise.errors import DataError
from stepwise.io import write_text
from stepwise.models.checkup import describe
from stepwise.models.hub import gguf_file
from stepwise.models.sizes import GgufFacts, complete, runs_here
from stepwise.runs.shell import POSITIONAL, Options, Run, program


class _Options(Options):
    weak: Annotated[str, POSITIONAL]
    """the weak model: the path of a GGUF, or provider/name"""
    strong: Annotated[str, POSITIONAL]
    """the strong model"""
    scorer: str | None = None
    """a process reward model: a GGUF with label tokens; without one, routing goes by how sure the weak model is"""
    file: Path = Path("stepwise.toml")
    """the file to write; one that exists is refused"""

    def overrides(self) -> list[str]:
        """The models."""
        given = {"models.weak": self.weak, "models.strong": self.strong, "scorer": self.scorer}
        return [f"{table}.model={model_name(model)}" for table, model in given.items() if model is not None]


@program(_Options, doc=__doc__, resumable=None)
def main(run: Run[_Options]) -> None:
    path = run.args.file
    if path.exists():
        raise DataError(f"{path} exists; give another --file, or remove it")
    text = _toml(run.config, run.args.scorer is not None)
    write_text(path, text)
    written = Config.load(path)
    run.say(f"{path} is written (configuration {written.hash}). Next:")
    run.say(f"  stepwise doctor --config {path}")
    run.say(f"  stepwise route --config {path} --problems FILE")


def _toml(config: Config, scored: bool) -> str:
    loads: dict[str, LoadConfig] = {"weak": config.models.weak, "strong": config.models.strong}
    loads |= {"scorer": config.scorer} if scored else {}
    here = {role: load for role, load in loads.items() if runs_here(load)}
    facts = {role: GgufFacts.read(gguf_file(load.model.partition("/")[2])) for role, load in here.items()}
    done = complete(here)
    thinks = any(each.thinks for each in facts.values())
    lines = [
        "# What differs from the defaults; `stepwise config` prints every key with its meaning.",
        "",
        "[prompt]                         # steps are told apart by blank lines, the answer is read from the box",
        f"system = {_quoted(config.prompt.system)}",
    ]
    if thinks:
        lines.append(
            "template_args = { enable_thinking = false }   # a model that thinks first writes no steps to route"
        )
    does = {"weak": "writes every step at first", "strong": "writes the steps that are escalated",
            "scorer": "says of each step how likely it is right"}  # fmt: skip
    for role, load in loads.items():
        table = role if role == "scorer" else f"models.{role}"
        lines += ["", f"{f'[{table}]':<32} # {does[role]}", f"model = {json.dumps(load.model)}"]
        if role in facts:
            chosen = done.models[role]
            lines += [
                f"# {describe(facts[role])}",
                f"context = {chosen.context:<22} # longest sequence in tokens",
                f"# sequences = {chosen.sequences:<18} # left open: as many at once as half of the free memory holds",
                f"# threads = {chosen.threads:<20} # left open: the physical cores",
                *(["# no chat template: this model cannot be asked a question"] if not facts[role].template else []),
                *(['# train_from = "DIR"             # to train it: stepwise import GGUF DIR'] * (role == "weak")),
            ]
        else:
            lines += [
                '# api_key_env = "NAME_OF_A_VARIABLE"',
                "# price_in = 0.0   # money per million tokens",
                "# price_out = 0.0",
            ]
    if not scored:
        lines += [
            "",
            "# No [scorer]: `stepwise route` escalates the steps where the weak model was unsure of a token, and sets",
            "# that threshold on problems which it leaves out of its table.",
        ]
    drawn = config.sampling
    return "\n".join([
        *lines,
        "",
        "[sampling]",
        f"temperature = {drawn.temperature}",
        f"max_step_tokens = {drawn.max_step_tokens:<14} # where a step is cut; they have 50 to 120 as a rule",
        "",
        "[budget]                         # hard caps for a whole run",
        "# strong_tokens = 100_000",
        "",
    ])  # fmt: skip


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main())
