"""The entry point of the ``sparsecc`` command: what becomes of a usage error, a signal or a closed pipe."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

_INTERRUPTED = 130
_TOLD_BY_SIGNAL = 128
"""The status, less the signal's number, of a process that a signal told to end."""
_signals: list[int] = []
"""That told this process to end."""


def main() -> None:
    """Run the command and exit: 0, 2 after a mistake, 129 when its terminal closed, 130 interrupted, 143 terminated."""
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup's
        signal.signal(signal.SIGHUP, _terminate)
    try:
        sys.exit(_command_line()(standalone_mode=False))
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        _leave(_INTERRUPTED)
    except SystemExit:
        if _signals:
            _leave(_told_status())
        raise
    except Exception as error:
        if _signals:  # a library was not ready to be left where it was
            _leave(_told_status())
        usage_message = getattr(error, "format_message", None)
        if usage_message is None:
            raise
        if not sys.argv[1:]:  # the help
            print(usage_message())
            sys.exit(2)
        command = getattr(getattr(error, "ctx", None), "command_path", "sparsecc")
        _fail(f"{_sentence(usage_message())} See {command} --help.")


def _command_line() -> Callable[..., Any]:
    """Imported where an interruption is seen to: it takes a second or two."""
    try:
        from sparsecc.command_line import app
    except ModuleNotFoundError as error:
        _fail(f"{error.name} is not installed; the command line needs pip install 'sparsecc[compile]'")
    return app


def _sentence(text: str) -> str:
    """With a full stop, which some of the command line's messages lack."""
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _fail(message: str) -> NoReturn:
    print(f"sparsecc: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _terminate(number: int, _frame: FrameType | None) -> None:
    """End by an exception, so that nothing half-written stays behind.

    A terminal that closes may say so twice, itself and by its shell, and the second would stop the cleaning up.
    """
    _signals.append(number)
    if number != signal.SIGTERM:  # whose sender means it
        signal.signal(number, signal.SIG_IGN)
    sys.exit(_told_status())


def _told_status() -> int:
    return _TOLD_BY_SIGNAL + _signals[-1]


def _leave(status: int) -> NoReturn:
    """Now: where a signal comes while a library starts a thread, that thread would keep the process for ever."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
