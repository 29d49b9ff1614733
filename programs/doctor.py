"""Check the installation, and try out every model of a configuration.

Of each local model: what it is, whether all fit into memory together, how fast it reads and writes, and whether
prompt, template and splitter make steps and a boxed answer of a sample problem. What is missing is named with what
mends it; the exit code is 1 where something is broken. An API is asked nothing: its key is looked for.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from typing import get_args

from stepwise.config import Config, LoadConfig, Roles, is_lab, model_name
from stepwise.errors import ConfigError, StepwiseError
from stepwise.models.checkup import Finding, describe, try_out
from stepwise.models.engine.context import library
from stepwise.models.hub import gguf_file
from stepwise.models.machine import free_memory, physical_cores
from stepwise.models.sizes import GgufFacts, complete, runs_here
from stepwise.runs.shell import Options, Run, program

_EXTRAS = {
    "train": ("torch", "transformers", "peft", "accelerate", "safetensors", "gguf"),
    "data": ("datasets",),
}
_GIB = 1 << 30


class _Options(Options):
    weak: str | None = None
    """the weak model, where there is no --config: the path of a GGUF, or provider/name"""
    strong: str | None = None
    """the strong model"""
    quick: bool = False
    """headers, memory and keys only: no model is loaded"""

    def overrides(self) -> list[str]:
        """The models."""
        given = {"weak": self.weak, "strong": self.strong}
        return [f"models.{role}.model={model_name(model)}" for role, model in given.items() if model is not None]


@program(_Options, doc=__doc__, resumable=None)
def main(run: Run[_Options]) -> int:
    broken = 0
    for heading, findings in (("installation", _installation()), *_models(run)):
        run.say(f"\n{heading}")
        for found in findings:
            broken += found.broken
            mark = "BROKEN" if found.broken else "todo" if found.remedy else "ok"
            run.say(f"  {mark:<6} {found.what}: {found.seen}{f'; {found.remedy}' if found.remedy else ''}")
    run.say(f"\n{broken} broken" if broken else "\nnothing is broken")
    return int(broken > 0)


def _installation() -> Iterator[Finding]:
    yield Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    try:
        info = library().llama_print_system_info().decode()
        version = importlib.metadata.version("llama-cpp-python")
        features = [part.split("=")[0].strip() for part in info.split("|") if part.strip().endswith("= 1")]
        yield Finding("llama.cpp", f"llama-cpp-python {version}, built with {', '.join(features)}")
    except StepwiseError as error:
        yield Finding("llama.cpp", str(error), "pip install 'llama-cpp-python>=0.3.36,<0.4'", True)
    for extra, packages in _EXTRAS.items():
        missing = [name for name in packages if not _version(name)]
        seen = (
            f"without {', '.join(missing)}" if missing else ", ".join(f"{name} {_version(name)}" for name in packages)
        )
        yield Finding(
            f"extra [{extra}]", seen, f'pip install "stepwise[{extra}]" where it is needed' if missing else ""
        )
    waits = os.environ.get("OMP_WAIT_POLICY", "")
    remedy = "" if waits.lower() == "passive" else "OMP_WAIT_POLICY=passive keeps threads from waiting at full load"
    free = free_memory()
    memory = "free memory unknown" if free is None else f"{free / _GIB:.1f} GiB free"
    yield Finding("machine", f"{physical_cores()} physical cores, {memory}", remedy)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _models(run: Run[_Options]) -> Iterator[tuple[str, Iterator[Finding]]]:
    config = run.config
    roles = [role for role in get_args(Roles) if _is_used(config, role)]
    loads: dict[str, LoadConfig] = {role: config.role(role) for role in roles}
    sound = {role: load for role, load in loads.items() if runs_here(load)}
    yield "memory", _memory(sound)
    for role in roles:
        yield f"{role}: {loads[role].model}", _model(run, role, sound.get(role, loads[role]))


def _is_used(config: Config, role: Roles) -> bool:
    """Where models are the user's own, the lab's only fill places that are empty."""
    return is_lab(config.models.weak.model) or not is_lab(config.role(role).model)


def _memory(loads: dict[str, LoadConfig]) -> Iterator[Finding]:
    """Whether all fit together; `loads` gets what was left open in them."""
    for role, load in list(loads.items()):
        try:
            GgufFacts.read(gguf_file(load.model.partition("/")[2]))
        except StepwiseError:
            del loads[role]  # said where the model is looked at
    try:
        result = complete(loads)
    except StepwiseError as error:
        yield Finding("together", str(error), broken=True)
        return
    loads |= result.models
    total, free = sum(result.needs.values()), free_memory()
    each = ", ".join(
        f"{role} {need / _GIB:.1f} GiB ({loads[role].sequences} x {loads[role].context:,} tokens)"
        for role, need in result.needs.items()
    )
    left = "" if free is None else f" of {free / _GIB:.1f} GiB free"
    yield Finding("together", f"{total / _GIB:.1f} GiB{left}: {each or 'no local model'}")


def _model(run: Run[_Options], role: Roles, load: LoadConfig) -> Iterator[Finding]:
    try:
        if not runs_here(load):
            yield from map(_remote, load.places)
            return
        facts = GgufFacts.read(gguf_file(load.model.partition("/")[2]))
        yield Finding("file", describe(facts))
        if load.train_from is None and role == "weak" and not is_lab(load.model):
            yield Finding("training", "train_from is not set", f"to train it: stepwise import {facts.path} DIR")
        if not run.args.quick:
            writes = role in ("weak", "strong")
            yield from try_out(load, run.config.prompt, run.config.sampling, writes=writes)
    except StepwiseError as error:
        yield Finding("loading", str(error), broken=True)


def _remote(load: LoadConfig) -> Finding:
    """Whether the key is there; nothing is asked, since that may cost money."""
    try:
        key = load.api_key()
    except ConfigError as error:
        return Finding("key", str(error), broken=True)
    prices = "" if load.prices else "set price_in and price_out, or its cost is not known"
    return Finding("API", f"{'key found' if key else 'no key needed'}, not asked", prices)


if __name__ == "__main__":
    sys.exit(main())
