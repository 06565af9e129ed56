"""llama.cpp's own HTTP server, OpenAI-compatible, in a child process.

A process of its own, since the native server cannot be stopped inside one, and since a crash in native code should
not take the caller along. This module is both sides: `LlamaServer` is the parent's handle, `python -m` of this module
is the child.

    with LlamaServer("student-Q4_K_M.gguf") as server:
        requests go to server.url + "/v1/chat/completions"
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from stillroom.contracts.errors import ModelError, ServiceFault

_STOP_SECONDS = 10.0


class LlamaServer:
    """A running server; use as a context manager. It listens on 127.0.0.1 only, on a port that the system chose.

    The child ends with the parent, however the parent ends: it watches a pipe that closes with it.

    Args:
        path: the .gguf file. Its own chat template is used.
        n_ctx: most tokens of one conversation, prompt and answer together.
        parallel: conversations answered at once; a further one waits.
        threads: CPU threads; default what llama.cpp finds best.
        alias: the model's name in requests and answers; default the file's name without its ending.
        most_tokens: that an answer has at most where a request names no length of its own.
        draft: the .gguf file of a smaller model with the same tokens, which writes ahead (speculative decoding);
            answers stay those of the model.
        draft_tokens: how many tokens it writes ahead at most.
        wait_seconds: how long loading may take.

    Raises:
        ModelError: no such file, or llama.cpp refuses it.
        ServiceFault: the server was not ready in time.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        n_ctx: int = 4096,
        parallel: int = 4,
        threads: int | None = None,
        alias: str | None = None,
        most_tokens: int | None = None,
        draft: str | Path | None = None,
        draft_tokens: int = 8,
        wait_seconds: float = 600.0,
    ) -> None:
        self.path = Path(path)
        for file in (self.path, *([] if draft is None else [Path(draft)])):
            if not file.is_file():
                raise ModelError("there is no such model file", got=file, do="check the path")
        self.alias = alias or self.path.stem
        settings = {
            "path": os.fspath(self.path.resolve()),
            "n_ctx": n_ctx * parallel,
            "parallel": parallel,
            "threads": threads,
            "alias": self.alias,
            "most_tokens": most_tokens,
            "draft": None if draft is None else os.fspath(Path(draft).resolve()),
            "draft_tokens": draft_tokens,
        }
        # A file, not a pipe: nobody reads it while the server runs, and a full pipe would stop the server.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            # A group of its own, so that Ctrl-C in a terminal lets running answers end.
            process_group=0,
            # -m finds this package wherever the parent found it.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        try:
            self.url = self._wait_until_healthy(time.monotonic() + wait_seconds)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the server; calling twice is harmless."""
        process = self._process
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, self._log):
            if stream is not None:
                stream.close()

    def log(self) -> str:
        """The end of what the server has written, for error messages."""
        position = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, position - 4000))
        return self._log.read().decode(errors="replace")

    def _wait_until_healthy(self, deadline: float) -> str:
        """The server's address, once it answers; the child writes it to its standard output when it listens."""
        announced: list[bytes] = []
        stdout = self._process.stdout
        assert stdout is not None
        reader = threading.Thread(target=lambda: announced.append(stdout.readline()), daemon=True)
        reader.start()
        reader.join(max(0.0, deadline - time.monotonic()))
        url = announced[0].decode().strip() if announced else ""
        while url and self.running and time.monotonic() < deadline:
            if _healthy(url):
                return url
            time.sleep(0.05)
        if announced and not url:
            raise ModelError(
                "llama.cpp's server cannot load this file",
                got=f"{self.path}: {self._first_complaint()}",
                do="export the model again, or lower n_ctx and parallel if memory is short",
            )
        raise ServiceFault(
            "llama.cpp's server did not become ready",
            got=self._first_complaint(),
            do="give it more time, or load a smaller model",
        )

    def _first_complaint(self) -> str:
        lines = [line for line in self.log().splitlines() if line.strip()]
        complaints = [line for line in lines if " E " in line]
        return (complaints[:1] or lines[-1:] or ["it said nothing"])[0].strip()


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _serve(settings: dict) -> None:
    """The child: starts the server, says where it listens, and ends when its standard input does."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["path"]
    params.model_alias = {settings["alias"]}
    params.n_ctx, params.n_parallel = settings["n_ctx"], settings["parallel"]
    params.port = 0
    params.ui = False
    # Any other origin would let every web page that the user visits talk to the model.
    params.cors_origins = "localhost"
    params.offline = True
    params.endpoint_metrics = True
    if settings["threads"]:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    if settings["most_tokens"]:
        params.n_predict = settings["most_tokens"]
    if settings["draft"]:
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        params.speculative.draft.mparams.path = settings["draft"]
        params.speculative.draft.n_max = settings["draft_tokens"]
    server = xllamacpp.Server(params)
    sys.stdout.write(server.listening_address + "\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()
    # Threads of the native server are still running; only the system can take them down.
    os._exit(0)


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
