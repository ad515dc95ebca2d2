"""sparsecc's models in lm-evaluation-harness, under the name ``sparsecc``.

``python -m sparsecc.lm_eval_adapter`` is lm-evaluation-harness's own command, which knows them::

    python -m sparsecc.lm_eval_adapter --model sparsecc --model_args path=books-16m-sparse --tasks lambada_openai

From Python, import this module, then call ``lm_eval.simple_evaluate(model="sparsecc", model_args="path=DIR", ...)``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
from numpy.typing import NDArray

from sparsecc.artifact import open_artifact
from sparsecc.errors import SparseccError
from sparsecc.evaluation import MeasuredModel
from sparsecc.generation import continue_prompt, load_generator_model
from sparsecc.progress import track
from sparsecc.session import MOST_THREADS
from sparsecc.text import load_tokenizer
from sparsecc.token_scores import log_softmax

_GIVEN_BY_HARNESS = ("batch_size", "max_batch_size", "device", "trust_remote_code")
"""What the harness gives every model beside --model_args, and what makes no difference here."""
_MAX_NEW_TOKENS = 256
"""What a task gets that does not say how much is to be generated, as with the harness's other models."""

_CERTAIN = (0.0, True)
"""The score of a continuation of no tokens."""

Request = tuple[tuple[str, str], list[int], list[int]]
"""A context and a continuation as text, and the tokens of each."""

Item = TypeVar("Item")


@register_model("sparsecc")
class SparseccLM(TemplateLM):  # type: ignore[misc]
    """An artifact as the harness sees it. Likelihoods are computed with every token thresholded, as by `sparsecc eval`.

    Text is generated as by `sparsecc generate`, where prompts run dense.
    """

    def __init__(self, path: str | None = None, threads: int = 2, **others: Any) -> None:
        """Load the artifact in the directory ``path``. The harness also gives a batch size and a device.

        Raises:
            SparseccError: the directory holds no whole model, or an argument is missing, misspelt or out of range.
        """
        super().__init__()
        unknown = sorted(set(others) - set(_GIVEN_BY_HARNESS))
        if unknown:
            raise SparseccError(f"there is no model argument {unknown[0]!r}; give path=DIR and, if need be, threads=N")
        if path in (None, ""):
            raise SparseccError("no model is named; give --model_args path=DIR")
        self._artifact = open_artifact(str(path))  # the harness makes a number of what looks like one
        self._threads = _thread_count(threads)
        self._tokenizer = load_tokenizer(self._artifact.directory)
        self._model = MeasuredModel(self._artifact, self._threads)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> SparseccLM:
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> SparseccLM:
        """As the harness does it, which fails where --model_args says what an option of its own says too."""
        return cls(**{**(additional_config or {}), **arg_dict})

    @property
    def eot_token_id(self) -> int:
        end = self._artifact.genai_config["model"]["eos_token_id"]
        return int(end[0] if isinstance(end, list) else end)

    @property
    def prefix_token_id(self) -> int:
        start = self._artifact.genai_config["model"].get("bos_token_id")
        return self.eot_token_id if start is None else int(start)

    @property
    def max_length(self) -> int:
        return self._artifact.context_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_unused: Any) -> list[int]:
        return list(self._tokenizer.encode(string, add_special_tokens=bool(add_special_tokens)).ids)

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As :meth:`_loglikelihood_tokens`, of texts. Nothing is certain to follow; the harness cannot encode it."""
        are_empty = [not request.args[1] for request in requests]
        rest = [request for request, is_empty in zip(requests, are_empty, strict=True) if not is_empty]
        scores = iter(super().loglikelihood(rest, disable_tqdm=disable_tqdm))
        return [_CERTAIN if is_empty else next(scores) for is_empty in are_empty]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, in nats; what does not fit the context is cut into windows."""
        totals = []
        for request in _shown(requests, "scoring", disable_tqdm=disable_tqdm):
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            pieces: list[Request] = [(("", ""), *make_disjoint_window(window)) for window in windows]
            totals.append(sum(score for score, _ in self._loglikelihood_tokens(pieces, disable_tqdm=True)))
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        return [
            self._continuation(*request.args) for request in _shown(requests, "generating", disable_tqdm=disable_tqdm)
        ]

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, **_unused: Any
    ) -> list[tuple[float, bool]]:
        """For each request log p(continuation | context) in nats, and whether the continuation is the likeliest."""
        return [
            self._score(context, continuation)
            for _, context, continuation in _shown(requests, "scoring", disable_tqdm=disable_tqdm)
        ]

    def _score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        if not continuation:
            return _CERTAIN
        if len(continuation) > self.max_length:
            raise SparseccError(
                f"a continuation of {len(continuation)} tokens exceeds the model's context of {self.max_length}"
            )
        ids = np.array([*context, *continuation][-(self.max_length + 1) :], np.int64)
        predicted = ids[-len(continuation) :]
        log_probabilities = self._last_log_probabilities(ids[:-1], len(continuation))
        total = np.take_along_axis(log_probabilities, predicted[:, None], axis=1).sum(dtype=np.float64)
        return float(total), bool((log_probabilities.argmax(axis=1) == predicted).all())

    def _last_log_probabilities(self, ids: NDArray[np.int64], count: int) -> NDArray[np.float32]:
        """float32 [count, vocabulary] of what follows the last tokens."""
        kept, first = [], len(ids) - count
        start = 0
        for logits in self._model.logits(ids):
            if (rows := logits[max(first - start, 0) :]).size:
                kept.append(log_softmax(rows))
            start += len(logits)
        return np.concatenate(kept)

    def _continuation(self, prompt: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        max_new_tokens = int(options.get("max_gen_toks", _MAX_NEW_TOKENS))
        pieces = continue_prompt(
            self._generator,
            self._cut(prompt, self.max_length - max_new_tokens),
            context_length=self.max_length,
            max_new_tokens=max_new_tokens,
            temperature=float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0,
        )
        return _until(pieces, stops)

    def _cut(self, prompt: str, tokens: int) -> str:
        """The end of a prompt that is too long."""
        encoded = self._tokenizer.encode(prompt, add_special_tokens=False)
        return prompt if len(encoded.ids) <= tokens else prompt[encoded.offsets[-max(tokens, 1)][0] :]

    @cached_property
    def _generator(self) -> Any:
        """Loaded when it is first needed: most tasks only score."""
        return load_generator_model(self._artifact, self._threads)


def _thread_count(given: object) -> int:
    """A number of threads as the harness read it: a number, or text that may be one."""
    try:
        threads = int(str(given))
    except ValueError:
        threads = 0
    if not 1 <= threads <= MOST_THREADS:
        raise SparseccError(f"threads={given} is no number of threads; give one from 1 to {MOST_THREADS}")
    return threads


def _until(pieces: Iterator[str], stops: Sequence[str]) -> str:
    """The text up to the first of the strings to stop at, generated no further than that."""
    text = ""
    for piece in pieces:
        text += piece
        ends = [text.index(stop) for stop in stops if stop and stop in text]
        if ends:
            return text[: min(ends)]
    return text


def _shown(items: Sequence[Item], activity: str, *, disable_tqdm: bool) -> Iterator[Item]:
    return iter(items) if disable_tqdm else track(items, activity, len(items))


def main() -> None:
    """Run lm-evaluation-harness's command; exit with code 2 and one line after a mistake about a model."""
    try:
        cli_evaluate()
    except SparseccError as error:
        print(f"sparsecc: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
