"""The `stepwise` command: `stepwise NAME ...` runs the program NAME, `stepwise evals.NAME ...` a benchmark."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path


def available() -> dict[str, tuple[str, str]]:
    """Name as typed -> (module, first line of its docstring), of every `@program`; none is imported."""
    found: dict[str, tuple[str, str]] = {}
    for package, prefix in (("programs", ""), ("evals", "evals.")):
        home, folders = _locate(package)
        for module in sorted(pkgutil.iter_modules(folders), key=lambda item: item.name):
            tree = ast.parse(Path(folders[0], module.name + ".py").read_text(encoding="utf-8"))
            mains = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
            if any("program" in ast.unparse(mark) for node in mains for mark in node.decorator_list):
                line = (ast.get_docstring(tree) or "").split("\n", 1)[0]
                found[prefix + module.name] = (f"{home}.{module.name}", line)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console command; returns the program's exit code, 2 when there is no such program."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    programs = available()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help(programs))
        return 0
    if arguments[0] == "--version":
        from stepwise import __version__

        print(f"stepwise {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in programs:
        close = difflib.get_close_matches(name, programs, n=1)
        hint = f'did you mean "{close[0]}"?' if close else "`stepwise --help` lists them."
        print(f'error: there is no program "{name}"; {hint}', file=sys.stderr)
        return 2
    try:
        code: int = importlib.import_module(programs[name][0]).main(rest)
    except KeyboardInterrupt:  # while it was being imported; a program that runs sees to it itself
        print("interrupted before anything was done", file=sys.stderr)
        return 130
    return code


def _locate(package: str) -> tuple[str, list[str]]:
    """Module name and folders of a package of programs: inside `stepwise` once installed, beside it in a checkout."""
    inside = importlib.util.find_spec(f"stepwise.{package}")
    if inside is not None and inside.submodule_search_locations:
        return f"stepwise.{package}", list(inside.submodule_search_locations)
    return package, [str(Path(__file__).parent.parent / package)]


def _help(programs: dict[str, tuple[str, str]]) -> str:
    width = max(map(len, programs), default=0)
    lines = [f"  {name:<{width}}  {line}" for name, (_, line) in programs.items()]
    head = ["usage: stepwise PROGRAM [options]", "", "Programs (`stepwise PROGRAM --help` for the options of one):"]
    return "\n".join([*head, *lines])


if __name__ == "__main__":
    sys.exit(main())
