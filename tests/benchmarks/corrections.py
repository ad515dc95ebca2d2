"""What corrections that cost nothing at run time are worth, beside thresholds alone.

    python tests/benchmarks/corrections.py MODEL --corpus FOLDER [--method teal] [--sparsity 0.5]

MODEL is a Llama-architecture checkpoint; it runs in transformers, in float32, with the thresholds of a method. Each
correction is applied by itself: the mean of what is dropped is given back, as a bias would; what is kept is scaled up
by the least-squares factor of its projection; the first tokens of a window, attention's sinks, are not thresholded.
Prints perplexity and mean divergence from the dense model on test.txt.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from sparsecc.calibration import calibrate_once
from sparsecc.compilation import make_recipe
from sparsecc.dense_export import export
from sparsecc.text import load_tokenizer, token_windows

CALIBRATED_WINDOWS = 8
TESTED_TOKENS = 16_384


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--corpus", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--method", default="teal")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        dense = export(str(arguments.model), Path(folder) / "dense")
        tokenizer = load_tokenizer(dense.directory)
        text = arguments.corpus / "calibration.txt"
        calibration = token_windows(text, tokenizer, window=dense.window)
        statistics = calibrate_once(dense, calibration, threads=arguments.threads)
        recipe = make_recipe(dense, statistics, arguments.method, arguments.sparsity, text, threads=arguments.threads)
    test = token_windows(arguments.corpus / "test.txt", tokenizer, tokens=TESTED_TOKENS, window=dense.window)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    inputs = ThresholdedInputs(model, {entry.name: entry.threshold for entry in recipe.projections})
    reference = [log_probabilities(model, window) for window in test.ids]
    inputs.threshold = True
    inputs.observe(calibration.first(CALIBRATED_WINDOWS).ids)
    corrections = {
        "thresholds alone": {},
        "mean given back": {"gives_mean_back": True},
        "kept scaled up": {"scales_kept": True},
        "first token dense": {"dense_tokens": 1},
        "first 4 tokens dense": {"dense_tokens": 4},
    }
    for name, settings in corrections.items():
        inputs.apply(**settings)
        perplexity, divergence = scores(model, test.ids, reference)
        print(f"{name:22} perplexity {perplexity:.3f}  divergence {divergence:.4f} nats")


class ThresholdedInputs:
    """Hooks that change what each projection of a model is given."""

    def __init__(self, model, thresholds):
        self._model = model
        self.threshold = self.observing = False
        self._kept_squares, self._products, self._dropped, self._tokens = {}, {}, {}, 0
        self.apply()
        for name, threshold in thresholds.items():
            module = model.get_submodule(name.removeprefix("/").replace("/", ".").replace("attn", "self_attn"))
            module.register_forward_pre_hook(self._hook(name, torch.from_numpy(np.array(threshold))))

    def apply(self, gives_mean_back=False, scales_kept=False, dense_tokens=0):
        self._gives_mean_back, self._scales_kept, self._dense_tokens = gives_mean_back, scales_kept, dense_tokens

    def observe(self, windows):
        """What is kept and dropped of each input on a text, in the thresholded model."""
        self.observing = True
        for window in windows:
            log_probabilities(self._model, window)
            self._tokens += len(window)
        self.observing = False

    def _hook(self, name, threshold):
        def change(module, arguments):
            (x,) = arguments
            if not self.threshold:
                return None
            kept = torch.where(x.abs() >= threshold, x, 0)
            if self.observing:
                product, whole = kept @ module.weight.T, x @ module.weight.T
                self._kept_squares[name] = self._kept_squares.get(name, 0) + product.square().sum()
                self._products[name] = self._products.get(name, 0) + (product * whole).sum()
                self._dropped[name] = self._dropped.get(name, 0) + (x - kept).sum((0, 1))
            if self._gives_mean_back:
                kept = kept + self._dropped[name] / self._tokens
            if self._scales_kept:
                kept = kept * self._products[name] / self._kept_squares[name]
            kept[:, : self._dense_tokens] = x[:, : self._dense_tokens]
            return (kept,)

        return change


@torch.no_grad()
def log_probabilities(model, window):
    return torch.log_softmax(model(torch.from_numpy(window)[None]).logits[0], -1)


def scores(model, windows, reference):
    loss = divergence = tokens = 0
    for window, expected in zip(windows, reference, strict=True):
        seen, targets = log_probabilities(model, window)[:-1], torch.from_numpy(window[1:])
        loss -= seen.gather(1, targets[:, None]).double().sum().item()
        divergence += (expected[:-1].exp() * (expected[:-1] - seen)).double().sum().item()
        tokens += len(targets)
    return np.exp(loss / tokens), divergence / tokens


if __name__ == "__main__":
    main()
