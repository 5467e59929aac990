"""A process with torch loaded that forks one child a run.

Writes a line of JSON when it is ready. Then it reads the folder of a run and variables for it, as a line of JSON, from
standard input, and writes a line when that run's process has ended. At the end of its input it asks the children still
running to save and stop. It never trains and never touches a device itself, so that forking it is safe.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable


def _child(run: str, main: Callable[[str], int]) -> None:
    """Train one run, output going to its log; never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(os.path.join(run, "run.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        code = main(run)
    except BaseException:  # into the run's log, as an interpreter of its own would write it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve(main: Callable[[str], int]) -> None:
    """Serve until the input ends.

    Args:
        main: Trains the run in a folder and returns an exit code.
    """
    # Ctrl-C reaches the whole process group: the children save and stop, and this process waits for them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    os.write(1, b'{"ready": true}\n')
    children: dict[int, str] = {}
    buffer, is_open = b"", True
    while is_open or children:
        ready, _, _ = select.select([wake_read, *([0] if is_open else [])], [], [])
        if 0 in ready:
            chunk = os.read(0, 1 << 16)
            if not chunk:
                is_open = False
                for pid in children:
                    os.kill(pid, signal.SIGTERM)
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    os.close(wake_read)
                    os.close(wake_write)
                    os.environ.update(order["environment"])
                    _child(order["run"], main)
                children[pid] = order["run"]
        if wake_read in ready:
            os.read(wake_read, 1 << 12)
            while children:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                ended = {"run": children.pop(pid), "code": os.waitstatus_to_exitcode(status)}
                with contextlib.suppress(BrokenPipeError):  # whoever ordered it is gone; the others are still to save
                    os.write(1, json.dumps(ended).encode() + b"\n")


def _load(entry: str) -> Callable[[str], int]:
    """Load once what every child needs: the function named ``module:name`` that trains the run in a folder.

    A function ``preload`` beside it is called.
    """
    path, _, name = entry.partition(":")
    module = importlib.import_module(path)
    main: Callable[[str], int] = getattr(module, name)
    getattr(module, "preload", lambda: None)()
    gc.collect()
    gc.freeze()  # what is loaded stays shared between the children instead of being copied by a collection
    return main


if __name__ == "__main__":
    serve(_load(sys.argv[1]))
