"""Text as windows of tokens, the unit of calibration and of perplexity."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sparsecc.errors import SparseccError

TOKENIZER_NAME = "tokenizer.json"
DEFAULT_TOKENS = 32_768
DEFAULT_WINDOW = 1_024


@dataclasses.dataclass(frozen=True)
class TokenWindows:
    """The first tokens of a text, cut into windows that do not overlap.

    Attributes:
        ids: int64 [windows, window].
        text_sha256: the hash of the text's bytes.
    """

    ids: NDArray[np.int64]
    text_sha256: str

    @property
    def tokens(self) -> int:
        return int(self.ids.size)

    @property
    def window(self) -> int:
        return int(self.ids.shape[1])

    def first(self, windows: int) -> TokenWindows:
        """The first windows, or all where there are no more."""
        return dataclasses.replace(self, ids=self.ids[:windows])

    def last(self, windows: int) -> TokenWindows:
        """The last windows, or all where there are no more."""
        return dataclasses.replace(self, ids=self.ids[-windows:])


def shipped_text(name: str) -> Path:
    """The text that sparsecc ships: ``calibration`` or ``evaluation``, public-domain English prose."""
    return Path(str(importlib.resources.files("sparsecc.texts").joinpath(f"{name}.txt")))


def first_tokens(tokenizer: Tokenizer, count: int) -> list[int]:
    """The first ``count`` token ids of the shipped evaluation text, or all that it has."""
    text = shipped_text("evaluation").read_text("utf-8")
    return list(tokenizer.encode(text, add_special_tokens=False).ids[:count])


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a model directory, set to tokenize texts of any length.

    Raises:
        SparseccError: there is no readable tokenizer.json.
    """
    path = directory / TOKENIZER_NAME
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises plain Exception
        raise SparseccError(f"{path} is not a readable tokenizer ({error}); export the model again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_text(path: Path) -> bytes:
    """The bytes of a UTF-8 text.

    Raises:
        SparseccError: the file cannot be read or is not UTF-8.
    """
    try:
        content = path.read_bytes()
        content.decode("utf-8")
    except FileNotFoundError as error:
        raise SparseccError(f"{path} does not exist; give a UTF-8 text file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SparseccError(f"{path} is not a readable UTF-8 text; give another file") from error
    return content


def token_windows(
    text_path: Path, tokenizer: Tokenizer, *, tokens: int = DEFAULT_TOKENS, window: int = DEFAULT_WINDOW
) -> TokenWindows:
    """Tokenize a text whole, without special tokens, and cut its first ``tokens`` tokens into whole windows.

    A shorter text gives the windows it has.

    Raises:
        SparseccError: the text cannot be read, is not UTF-8, or is shorter than one window.
    """
    content = read_text(text_path)
    ids = tokenizer.encode(content.decode("utf-8"), add_special_tokens=False).ids[:tokens]
    windows = len(ids) // window
    if windows == 0:
        raise SparseccError(
            f"the tokens of {text_path} ({len(ids)}) are fewer than one window of {window}; give a longer text"
            if len(ids) < tokens
            else f"the tokens asked for ({tokens}) are fewer than one window of {window}; ask for more"
        )
    ids_by_window = np.array(ids[: windows * window], np.int64).reshape(windows, window)
    return TokenWindows(ids_by_window, hashlib.sha256(content).hexdigest())
