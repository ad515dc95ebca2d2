"""What the executor computes on a GPU, beside onnxruntime on the CPU, on the same file.

    python tests/benchmarks/gpu_parity.py books-16m-sparse

Prints the relative error of the logits of a prompt and of single decoded tokens, in float32 and in bfloat16, and how
many of 64 tokens that are decoded greedily are the same. onnxruntime computes sparse operators as the functions that
the file carries. A threshold is not continuous, so single tokens of a sparse model may differ by more than rounding
where an entry lies close to one; in bfloat16, and beside the CPU's kernels for int8 and int4, which round hidden states
to few bits, many do.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from sparsecc.artifact import open_artifact
from sparsecc.model_file import load_model
from sparsecc.runtime_ops.triton.decoding import open_decoder, require_gpu
from sparsecc.session import empty_cache, open_session, piece_inputs
from sparsecc.text import first_tokens, load_tokenizer

PROMPT_TOKENS = 64
NEW_TOKENS = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, metavar="DIR")
    artifact = open_artifact(parser.parse_args().artifact)
    prompt = first_tokens(load_tokenizer(artifact.directory), PROMPT_TOKENS)
    expected_logits, expected_tokens = onnxruntime_continuation(artifact, prompt)
    for dtype in (torch.float32, torch.bfloat16):
        logits, tokens = executor_continuation(artifact, prompt, expected_tokens, dtype)
        errors = [relative_error(*pair) for pair in zip(logits, expected_logits, strict=True)]
        same = sum(mine == theirs for mine, theirs in zip(tokens, expected_tokens, strict=True))
        print(
            f"{dtype}: relative error of the prompt's logits {errors[0]:.1e}, of single tokens' in the median "
            f"{np.median(errors[1:]):.1e}, at most {max(errors[1:]):.1e}; {same} of {NEW_TOKENS} tokens are the same"
        )


def onnxruntime_continuation(artifact, prompt):
    """Logits after the prompt and after each token that was likeliest, and those tokens."""
    session = open_session(artifact.model_path)
    cache = empty_cache(session, **artifact.cache_shape)
    presents = [name.replace("past_key_values", "present") for name in cache]
    piece, start, logits, tokens = np.array([prompt]), 0, [], []
    while True:
        inputs = piece_inputs(session, piece, start)
        found, *updates = session.run([artifact.logits_name, *presents], {**inputs, **cache})
        cache = dict(zip(cache, updates, strict=True))
        logits.append(found[0, -1])
        start += piece.shape[1]
        if len(tokens) == NEW_TOKENS:
            return logits, tokens
        tokens.append(int(found[0, -1].argmax()))
        piece = np.array([tokens[-1:]])


def executor_continuation(artifact, prompt, tokens, dtype):
    """The logits after the same tokens, and the tokens that the executor finds likeliest when it goes its own way."""
    model, capacity = load_model(artifact.model_path), PROMPT_TOKENS + NEW_TOKENS
    decoder = open_decoder(model, capacity, device=require_gpu(), dtype=dtype, **artifact.cache_shape)
    logits = [decoder.start(prompt), *(decoder.step(token).clone() for token in tokens)]
    decoder.start(prompt)
    own = []
    for _ in range(NEW_TOKENS):
        own.append(int(decoder.next_token))
        decoder.step()
    return [each.float().cpu().numpy() for each in logits], own


def relative_error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


if __name__ == "__main__":
    main()
