"""The one place that calls llama.cpp: a loaded model and its context, as numpy arrays and plain integers.

Every sequence has a stream of its own in the key-value cache (llama.cpp's `kv_unified = false`). In a unified cache
each token attends over, or skips, the cells of all other sequences too, which is several times slower with many of
them. The price is that a fork copies cells, and that a batch is computed in one piece only where the streams in it are
neighbours; `cache.py` and `scheduler.py` see to both.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import re
import signal
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stepwise.errors import BackendError, MissingDependencyError
from stepwise.models.engine.weights import read_gguf
from stepwise.models.machine import memory_of

BATCH = 512
"""Most tokens in one call of llama_decode."""
KV_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}
"""What one element of the key-value cache takes, by the cache's type."""
_KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}  # ggml.h
_MAX_STREAMS = 256
MAX_ADAPTERS = 8
"""Adapters that stay loaded; training attaches one after the other."""
_DECODE_ERRORS = {1: "no room in the key-value cache", 2: "aborted", -1: "invalid batch"}
_LOG_ERROR = 4  # ggml.h; llama_cpp's own table of levels is one off
_log_lock = threading.Lock()
_models: dict[Hashable, tuple[Any, set[int]]] = {}  # a file's weights, and the contexts that read with them
_models_lock = threading.Lock()


@cache
def library() -> Any:
    """llama_cpp's low-level module, imported and made quiet on first use.

    Example:
        print(library().llama_print_system_info().decode())
    """
    # llama.cpp's OpenMP threads spin while they wait, which brings a machine that does anything else to a halt.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        import llama_cpp._logger as logger
        import llama_cpp.llama_cpp as lib
    except ImportError as error:
        raise MissingDependencyError(
            f"llama-cpp-python is needed to run a GGUF ({error}); pip install 'llama-cpp-python>=0.3.36,<0.4'"
        ) from error
    if logger.logger.level == logging.NOTSET:  # nobody has chosen: errors come as exceptions
        logger.logger.setLevel(logging.CRITICAL)
    lib.llama_backend_init()
    return lib


@cache
def build_id() -> str:
    """Version, digest and instruction sets of the llama.cpp that runs here: another one may round otherwise.

    Example:
        print(build_id())  # 0.3.36 1a2b3c4d SSE3 AVX AVX2 ...
    """
    lib, digest = library(), hashlib.sha256()
    for file in sorted((Path(lib.__file__).parent / "lib").glob("*ggml-cpu*")):
        digest.update(file.read_bytes())
    about = re.findall(r"(\w+) = 1", lib.llama_print_system_info().decode())
    return " ".join([metadata.version("llama-cpp-python"), digest.hexdigest()[:8], *about])


@contextmanager
def captured_log() -> Iterator[list[str]]:
    """Collect llama.cpp's errors instead of printing anything; the previous log is put back at the end.

    Example:
        with captured_log() as lines:
            model = library().llama_model_load_from_file(b"missing.gguf", parameters)
        print(lines)  # what llama.cpp had to say
    """
    lib = library()
    lines: list[str] = []

    def note(level: int, text: bytes, _: object) -> None:
        if level == _LOG_ERROR:
            lines.append(text.decode(errors="replace").strip())

    callback = lib.llama_log_callback(note)
    previous, data = lib.llama_log_callback(), ctypes.c_void_p()
    with _log_lock, no_interrupt():
        lib.llama_log_get(ctypes.byref(previous), ctypes.byref(data))
        lib.llama_log_set(callback, None)
        try:
            yield lines
        finally:
            lib.llama_log_set(previous, data)


@contextmanager
def no_interrupt() -> Iterator[None]:
    """Put Ctrl-C off to the end of the block. Python takes it at the entry of the next function: where that is one that
    C calls, such as with a line of llama.cpp's log, it would be dropped.

    Example:
        with no_interrupt():
            engine_thread_ended.wait()
    """
    handler, came = signal.getsignal(signal.SIGINT), list[int]()
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # it reaches no Python code here
        return
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(came[0], None)


def wait_for_end(ended: threading.Event) -> None:
    """Wait until a thread has set `ended`, its last act; a Ctrl-C meanwhile is put off to then. A `join` that Ctrl-C
    breaks off makes the next one return at once (before Python 3.13), with the thread still at work.

    Example:
        wait_for_end(self._ended)  # then its context can be freed
    """
    with no_interrupt():
        ended.wait()


def _reason(lines: list[str]) -> str:
    return "; ".join(lines[:3]) or "llama.cpp gave no reason"


class LlamaContext:
    """A model, its context of `streams` separate sequences, and one reusable batch. Not thread safe. The weights of a
    file are loaded once for all contexts of the process, each of which has its own cache and its own adapter.

    `context` is the longest sequence in tokens. `streams` is how many sequences are held at once: `sequences`, or as
    many as fit into `kv_memory` bytes of key-value cache, at least one. Raises BackendError with llama.cpp's own
    reason.

    Example:
        context = LlamaContext(model_path("lab-weak"), context=512, sequences=8, threads=2, gpu_layers=0, kv_type="f16",
                               flash_attention=True, kv_memory=1 << 30)
    """

    def __init__(
        self,
        path: Path,
        *,
        context: int,
        sequences: int,
        threads: int,
        gpu_layers: int,
        kv_type: str,
        flash_attention: bool,
        kv_memory: int,
    ) -> None:
        if kv_type not in _KV_TYPES:
            raise BackendError(f"kv_type is {kv_type!r}; use one of {', '.join(_KV_TYPES)}")
        self.lib = lib = library()
        self.path, self.context, self.threads, self.model, self.ctx = path, context, threads, None, None
        if not path.is_file():
            raise BackendError(f"{path}: no such file; give the path of a GGUF, or the name of a lab model")
        self.fields, self._adapters = read_gguf(path).fields, dict[str, Any]()
        status = path.stat()
        self._key = (os.getpid(), os.path.realpath(path), status.st_ino, status.st_size, status.st_mtime_ns, gpu_layers)
        with _models_lock:
            if self._key not in _models:
                _models[self._key] = (self._load_model(gpu_layers), set())
            self.model, readers = _models[self._key]
            readers.add(id(self))
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.vocabulary: int = lib.llama_vocab_n_tokens(self.vocab)
        self.parameters: int = lib.llama_model_n_params(self.model)
        padded = (context + 255) // 256 * 256  # llama.cpp reads its cache in pieces of 256 cells
        stream_bytes = padded * self._cell_size() * KV_BYTES[kv_type]
        self.streams = max(1, min(sequences, int(kv_memory / stream_bytes), _MAX_STREAMS))
        self.cache_bytes = int(self.streams * stream_bytes)
        self.memory_bytes = lib.llama_model_size(self.model) + self.cache_bytes
        self.max_rows = max(self.streams, 64)
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = padded * self.streams, self.streams
        params.n_batch = params.n_ubatch = BATCH
        params.n_outputs_max, params.n_outputs_max_per_seq = self.max_rows, 0
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = _KV_TYPES[kv_type]
        params.flash_attn_type = -1 if flash_attention else 0  # -1: wherever the device has it
        params.pooling_type = 0  # none: a state for each token
        params.kv_unified, params.no_perf, params.offload_kqv = False, True, gpu_layers != 0
        with captured_log() as lines:
            self.ctx = lib.llama_init_from_model(self.model, params)
        if not self.ctx:
            self.close()
            raise BackendError(
                f"{path}: no context of {context} tokens, {self.streams} sequences could be made ({_reason(lines)}); "
                f"lower context or sequences, or use kv_type 'f16' with flash_attention"
            )
        self._memory = lib.llama_get_memory(self.ctx)
        self.width: int = lib.llama_model_n_embd(self.model)
        self._views: dict[int, tuple[int, npt.NDArray[np.float32]]] = {}
        self._with_states = False
        self._make_batch()

    def _load_model(self, gpu_layers: int) -> Any:
        params = self.lib.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        with captured_log() as lines:
            model = self.lib.llama_model_load_from_file(os.fsencode(self.path), params)
        if not model:
            raise BackendError(
                f"{self.path}: llama.cpp cannot load it ({_reason(lines)}); "
                "give a complete GGUF file of an architecture that it knows"
            )
        if not self.lib.llama_model_has_decoder(model) or self.lib.llama_model_is_recurrent(model):
            self.lib.llama_model_free(model)
            raise BackendError(f"{self.path}: not a decoder-only transformer; give one")
        return model

    def _cell_size(self) -> int:
        """Numbers that one token takes in the key-value cache, over all layers."""
        lib, model, fields = self.lib, self.model, self.fields
        width = lib.llama_model_n_embd(model) // lib.llama_model_n_head(model)
        lengths = [f"{fields['general.architecture']}.attention.{side}_length" for side in ("key", "value")]
        both = sum(int(fields.get(length, width)) for length in lengths)
        return int(lib.llama_model_n_layer(model) * lib.llama_model_n_head_kv(model) * both)

    def _make_batch(self) -> None:
        """A llama_batch whose fields are numpy arrays (BATCH,), so that a step fills it with a few assignments."""
        self.token, self.pos, self.stream = np.zeros((3, BATCH), np.int32)
        self.want = np.zeros(BATCH, np.int8)  # 1: logits are wanted after this token
        # llama.cpp takes a list of streams for each token: here each list is one entry of `stream`.
        counts, pointers = np.ones(BATCH, np.int32), self.stream.ctypes.data + 4 * np.arange(BATCH, dtype=np.uint64)
        self._fields: dict[str, npt.NDArray[Any]] = {
            "token": self.token,
            "pos": self.pos,
            "n_seq_id": counts,
            "seq_id": pointers,
            "logits": self.want,
        }
        self._batch = self.lib.llama_batch()
        types = dict(self.lib.llama_batch._fields_)
        for name, array in self._fields.items():  # they stay referenced: the batch holds bare addresses
            setattr(self._batch, name, ctypes.cast(array.ctypes.data, types[name]))

    def decode(self, n: int, rows: int, states: bool = False) -> npt.NDArray[np.float32]:
        """Run the first `n` entries of the batch, streams ascending; logits (rows, vocabulary) where `want` is set.

        With `states`, `want` must be set everywhere: llama.cpp then gives logits and state of every token. The array is
        llama.cpp's own buffer: it is valid until the next call. Raises BackendError.
        """
        if states != self._with_states:
            self.lib.llama_set_embeddings(self.ctx, states)
            self._with_states = states
        self._batch.n_tokens = n
        code = self.lib.llama_decode(self.ctx, self._batch)
        if code:
            reason = _DECODE_ERRORS.get(code, "internal error")
            raise BackendError(f"{self.path}: llama_decode failed with code {code} ({reason}) on {n} tokens")
        if not rows:
            return np.empty((0, self.vocabulary), np.float32)
        return self._view(self.lib.llama_get_logits, self.vocabulary)[:rows]

    def states(self, rows: int) -> npt.NDArray[np.float32]:
        """The last layer's states (rows, width), behind its norm, of what was run last; valid until the next call."""
        return self._view(self.lib.llama_get_embeddings, self.width)[:rows]

    def _view(self, getter: Any, width: int) -> npt.NDArray[np.float32]:
        # llama.cpp seldom moves its buffers, and a view of one costs more than drawing from a row.
        address = ctypes.cast(getter(self.ctx), ctypes.c_void_p).value or 0
        known, view = self._views.get(id(getter), (0, None))
        if view is None or known != address:
            buffer = (ctypes.c_float * (self.max_rows * width)).from_address(address)
            view = np.ctypeslib.as_array(buffer).reshape(self.max_rows, width)
            self._views[id(getter)] = address, view
        return view

    def truncate(self, stream: int, n: int) -> None:
        """Forget what `stream` holds from position `n` on."""
        self.lib.llama_memory_seq_rm(self._memory, stream, n, -1)

    def save(self, stream: int) -> npt.NDArray[np.uint8]:
        """A copy of all that `stream` holds."""
        data = memory_of(self.lib.llama_state_seq_get_size(self.ctx, stream))
        written = self.lib.llama_state_seq_get_data(self.ctx, _bytes_pointer(data), data.size, stream)
        if written != data.size:
            raise BackendError(
                f"{self.path}: the state of sequence {stream} could not be read ({written} of {data.size} bytes)"
            )
        return data

    def restore(self, stream: int, data: npt.NDArray[np.uint8]) -> None:
        """Put a saved copy into `stream`, in place of what it holds."""
        self.truncate(stream, 0)  # llama.cpp leaves the stream as it is where the copy is empty
        if not self.lib.llama_state_seq_set_data(self.ctx, _bytes_pointer(data), data.size, stream):
            raise BackendError(f"{self.path}: the state of sequence {stream} could not be written ({data.size} bytes)")

    def set_adapter(self, path: Path | None, digest: str, scale: float) -> None:
        """Attach the LoRA adapter at `path` (a sound GGUF; `digest` identifies it), or none. Raises BackendError."""
        if path is None:
            self.lib.llama_set_adapters_lora(self.ctx, None, 0, None)
            return
        adapter = self._adapters.get(digest)
        if adapter is None:
            with captured_log() as lines:
                adapter = self.lib.llama_adapter_lora_init(self.model, os.fsencode(path))
            if not adapter:
                raise BackendError(
                    f"adapter {path} does not fit {self.path} ({_reason(lines)}); give a GGUF LoRA made for it"
                )
        pointers, scales = (self.lib.llama_adapter_lora_p_ctypes * 1)(adapter), (ctypes.c_float * 1)(scale)
        if self.lib.llama_set_adapters_lora(self.ctx, pointers, 1, scales):
            raise BackendError(f"adapter {path} could not be attached to {self.path}")
        # The last used stands last. Others are freed only now: at the place of the one that was attached until now, a
        # new adapter would pass for it.
        self._adapters = {**{k: v for k, v in self._adapters.items() if k != digest}, digest: adapter}
        while len(self._adapters) > MAX_ADAPTERS:
            self.lib.llama_adapter_lora_free(self._adapters.pop(next(iter(self._adapters))))

    def close(self) -> None:
        """Free the context and, where no other reads with it, the model; calling it twice does nothing."""
        if self.ctx:
            self.lib.llama_free(self.ctx)
        if self.model:
            for adapter in self._adapters.values():
                self.lib.llama_adapter_lora_free(adapter)
            with _models_lock:
                readers = _models[self._key][1]
                readers.discard(id(self))
                if not readers:
                    self.lib.llama_model_free(_models.pop(self._key)[0])
        self.ctx = self.model = None
        self._adapters = {}


def _bytes_pointer(data: npt.NDArray[np.uint8]) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
