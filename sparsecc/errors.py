"""The one exception that stands for a user's mistake."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class SparseccError(Exception):
    """A mistake that the user can mend.

    The message is one line that says what was wrong and what to do about it. The command line prints it without a
    traceback and exits with code 2.
    """


class MisfitError(SparseccError):
    """A method cannot serve a model, or knows too little of it; another method may do."""


@contextlib.contextmanager
def runtime_failures(doing: str) -> Iterator[None]:
    """Turn what a runtime raises on a model that it cannot take into one line that says what it was ``doing``.

    onnxruntime and onnxruntime-genai share no exception type but Exception, and say what is wrong in the first line.
    """
    try:
        yield
    except (SparseccError, OSError, AttributeError):
        raise
    except Exception as error:
        raise mistake(doing, error) from error


def mistake(doing: str, error: Exception) -> SparseccError:
    """What went wrong with a model while ``doing`` something, by the first line that an error says."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return SparseccError(f"{doing}: {reason}; export or compile the model again")
