"""Make the directory that training needs from a GGUF: weights and tokenizer in transformers' layout.

    stepwise import models/mine.gguf models/mine

The tokenizer is compared with llama.cpp's on a thousand texts. Needs the train extra, and as much memory as the
weights take in 16 bits, twice.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from stepwise.models.hub import gguf_file
from stepwise.runs.progress import announce
from stepwise.runs.shell import POSITIONAL, Options, Run, program
from stepwise.training.export.from_gguf import NUM_TEXTS, Dtype, exportable, import_gguf


class _Options(Options):
    gguf: Annotated[str, POSITIONAL]
    """the GGUF: a path, or hf:ORG/REPO/FILE.gguf"""
    directory: Annotated[Path, POSITIONAL]
    """the directory to make"""
    dtype: Dtype = "float16"
    """type of the weights on disk: float16, bfloat16 or float32"""


@program(_Options, doc=__doc__, resumable=None)
def main(run: Run[_Options]) -> None:
    args = run.args
    gguf = gguf_file(args.gguf.removeprefix("llamacpp/"))
    announce(f"reading {gguf}")
    made = import_gguf(gguf, args.directory, dtype=args.dtype)
    size = sum(file.stat().st_size for file in made.iterdir())
    run.say(f"{made} ({size / 1e6:,.1f} MB): both tokenizers agree on {NUM_TEXTS:,} texts")
    if remark := exportable(made):
        run.say(remark)
    run.say(f'In the configuration, beside model = "llamacpp/{gguf}":\n  train_from = "{made}"')


if __name__ == "__main__":
    sys.exit(main())
