"""From a model file to an address that answers: llama.cpp as a child, the front before it, until told to stop."""

from __future__ import annotations

import errno
import json
import logging
import shlex
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from stillroom.contracts.errors import Fault, ModelError, RunError, UserError
from stillroom.contracts.runfolder import Run
from stillroom.models.llama_cpp_server import LlamaServer
from stillroom.serving.app import create_app
from stillroom.serving.cascading import Cascading
from stillroom.serving.comparing import Comparison, Preset
from stillroom.serving.relay import Backend

_LOOK_SECONDS = 0.2
_GRACE_SECONDS = 8
"""What running answers are given to end when the server is stopped; containers are killed after ten."""
_STEADY_SECONDS = 60.0
"""A child that dies sooner than this after its start is started again after a pause that doubles."""
_LONGEST_PAUSE = 30.0


def model_file(path: Path) -> Path:
    """The GGUF file that a path stands for: itself, or the first file that a run's recipe names in `quantise`.

    Raises:
        ModelError: the path is a file of another kind.
        RunError: the folder is not a run, or its quantise stage has not finished.
    """
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(
                f"{path} is not a GGUF file", expected="a .gguf file or a run folder", do="give runs/NAME"
            )
        return path
    run = Run.open(path)
    if run.recipe.classify:
        raise RunError(
            "a student that chooses among classes cannot hold conversations",
            got=f"{path}, whose recipe has `classify`",
            expected="a student that writes",
            do=f"{path / 'export' / 'README.md'} says how to call it",
        )
    file = run.need("quantise") / f"student-{run.recipe.handed_over or 'F16'}.gguf"
    if not file.is_file():
        raise RunError(f"{file} does not exist", do=f"stillroom run {path}")
    return file


def serve(
    path: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    context: int | None = None,
    parallel: int = 4,
    threads: int | None = None,
    most_tokens: int | None = None,
    most_requests: int = 1024,
    api_keys: Sequence[str] = (),
    name: str | None = None,
    cascade: Callable[[Backend], Cascading] | None = None,
    presets: Sequence[Preset] = (),
    announce: Callable[[str], None],
) -> None:
    """Serve a model file or a run's student, OpenAI-compatible, until SIGINT or SIGTERM.

    The front answers at once, with 503 while the model loads. llama.cpp runs as a child process, is started again
    when it dies, and ends with this one. Call it from the main thread: signals arrive there.

    Args:
        path: a .gguf file or a run folder.
        port: 0 takes any free one.
        context: most tokens of one conversation; default the run's `export.context`, or 4096 for a file.
        parallel: conversations answered at once; more wait.
        threads: CPU threads; default what llama.cpp finds best.
        most_tokens: that an answer may have; requests for more are refused. Default: all that fit the context.
        most_requests: under way at once, those that wait included; more are refused (429).
        api_keys: where given, clients must send one of them as a bearer token.
        name: the model's name for clients; default the run's or the file's.
        cascade: makes of the student what answers by its name; the student alone then has NAME-student.
        presets: questions that /compare offers.
        announce: receives each line that the reader should see.

    Raises:
        UserError: the address cannot be listened on; the model or the run cannot be used.
        ServiceFault: the model did not load in time.
    """
    file = model_file(path)
    if path.is_dir():
        recipe = Run.open(path).recipe
        name, context = name or recipe.name, context or recipe.export.context
    name = name or file.stem
    student = Backend(file=file)
    models: dict[str, Backend | Cascading] = {name: student}
    if cascade is not None:
        models = {name: cascade(student), f"{name}-student": student}
    serve_models(
        models,
        host=host,
        port=port,
        context=context or 4096,
        parallel=parallel,
        threads=threads,
        most_tokens=most_tokens,
        most_requests=most_requests,
        api_keys=api_keys,
        announce=announce,
        comparison=Comparison(name, presets),
    )


def serve_models(
    models: Mapping[str, Backend | Cascading],
    *,
    host: str,
    port: int,
    context: int,
    parallel: int,
    threads: int | None = None,
    most_tokens: int | None = None,
    most_requests: int = 1024,
    api_keys: Sequence[str] = (),
    comparison: Comparison | None = None,
    announce: Callable[[str], None],
) -> None:
    """Serve several models until SIGINT or SIGTERM: files by a llama.cpp server each, others where they are.

    Args:
        models: who answers, by the names that clients may ask for.
        comparison: what /compare is about; None: there is no such page.

    The other arguments and what is raised are those of `serve`.
    """
    app = create_app(
        models,
        api_keys=api_keys,
        most_requests=most_requests,
        most_tokens=most_tokens,
        comparison=comparison,
    )

    def starter(name: str, file: Path) -> Callable[[], LlamaServer]:
        return lambda: LlamaServer(
            file, n_ctx=context, parallel=parallel, threads=threads, alias=name, most_tokens=most_tokens
        )

    files = list(_own_files(models))
    children = [_Child(starter(name, file), backend, announce) for name, backend, file in files]
    try:
        with (
            _listening(host, port) as listener,
            _signals_interrupt(),
            ExitStack() as stack,
            _answering(app, listener) as alive,
        ):
            for child in children:
                stack.callback(child.close)
            try:
                for child, (_, _, file) in zip(children, files, strict=True):
                    announce(f"loading {file}")
                    child.start()
                for line in _welcome(host, listener.getsockname()[1], list(models), bool(api_keys)):
                    announce(line)
                while alive():
                    for child in children:
                        child.look()
                    time.sleep(_LOOK_SECONDS)
                raise Fault("the HTTP server ended by itself", do="report what it wrote above")
            except KeyboardInterrupt:
                announce(f"stopping; answers in progress are given {_GRACE_SECONDS} seconds")
                raise
    except KeyboardInterrupt:
        return


def _own_files(models: Mapping[str, Backend | Cascading]) -> Iterator[tuple[str, Backend, Path]]:
    """The backends that servers of our own are to be, each once: the name in their answers, and their file."""
    found: dict[int, tuple[str, Backend]] = {}
    for name, model in models.items():
        if isinstance(model, Cascading):
            found.setdefault(id(model.student), (name, model.student))
            found.setdefault(id(model.frontier), (f"{name}-frontier", model.frontier))
        else:
            found.setdefault(id(model), (name, model))
    yield from ((name, backend, backend.file) for name, backend in found.values() if backend.file is not None)


class _Child:
    """llama.cpp's server, started again when it dies."""

    def __init__(
        self, start: Callable[[], LlamaServer], backend: Backend, announce: Callable[[str], None]
    ) -> None:
        self._start, self._backend, self._announce = start, backend, announce
        self._server: LlamaServer | None = None
        self._since = self._pause = 0.0

    def start(self) -> None:
        self._server = self._start()
        self._since = time.monotonic()
        self._backend.url = self._server.url

    def look(self) -> None:
        """Start it again if it has died."""
        if self._server is None or self._server.running:
            return
        self._backend.url = None
        self._server.close()
        steady = time.monotonic() - self._since > _STEADY_SECONDS
        self._pause = 0.0 if steady else min(2 * self._pause + 1, _LONGEST_PAUSE)
        self._announce("the model server died; starting it again" + f" in {self._pause:.0f} s" * (not steady))
        time.sleep(self._pause)
        self.start()
        self._announce("the model answers again")

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket on which the front may listen; taken before the model is loaded, which can take minutes."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} on {host} is in use by another program",
                do="choose another port, or end that program",
            ) from error
        if error.errno == errno.EACCES:
            raise UserError(
                f"this user may not listen on port {port}", do="choose a port above 1023"
            ) from error
        raise UserError(
            f"{host} is not an address of this machine",
            got=error,
            do="use 127.0.0.1, or 0.0.0.0 for all of them",
        ) from error
    except OverflowError as error:
        raise UserError("there is no such port", got=port, expected="0 to 65535") from error
    with listener:
        yield listener


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM ends the program as Ctrl-C does, wherever it is: loading, serving or starting the model again."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _answering(app: Starlette, listener: socket.socket) -> Iterator[Callable[[], bool]]:
    """The front in a thread of its own, so that the main thread can be interrupted; gives whether it still runs."""
    config = uvicorn.Config(
        app, log_level="error", server_header=False, lifespan="on", timeout_graceful_shutdown=_GRACE_SECONDS
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="front")
    thread.start()
    try:
        while thread.is_alive() and not server.started:
            time.sleep(0.01)
        yield thread.is_alive
    finally:
        # An answer that is cut off when its time is up would be logged as a bug, traceback included.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        server.should_exit = True
        try:
            thread.join()
        except KeyboardInterrupt:  # asked a second time: at once, then
            server.force_exit = True
            thread.join()


def _welcome(host: str, port: int, names: Sequence[str], keyed: bool) -> Iterator[str]:
    """What to say once the models answer."""
    here = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(
        host, f"[{host}]" if ":" in host else host
    )
    address = f"http://{here}:{port}"
    yield f"serving {', '.join(names)} at {address}/v1"
    if not keyed and here == "127.0.0.1" != host:
        yield "anyone who can reach this machine can use it: set an API key"
    yield f"try it in a browser: {address}/compare"
    body = json.dumps(
        {"model": names[0], "messages": [{"role": "user", "content": "Hello"}]}, ensure_ascii=False
    )
    key = ' -H "Authorization: Bearer $API_KEY"' if keyed else ""
    yield f'curl {address}/v1/chat/completions -H "Content-Type: application/json"{key} -d {shlex.quote(body)}'
