"""CATS on the trained model: compiled, measured and run, with its weights in int8 and as they were."""

import numpy as np
import pytest

from sparsecc.compilation import compile_model
from sparsecc.evaluation import evaluate
from sparsecc.model_file import load_model
from sparsecc.session import open_session, run_prompt
from sparsecc.text import load_tokenizer, shipped_text, token_windows

SPARSITY = 0.25


@pytest.mark.parametrize("weights", ["fp32", pytest.param("int8", marks=pytest.mark.slow)])
def test_the_trained_model_meets_the_target_and_stays_good(dense, tmp_path, weights):
    options = {"method": "cats", "sparsity": SPARSITY, "weights": weights, "tokens": 2048, "measure": False}
    artifact = compile_model(dense.directory, tmp_path / "cats", **options).artifact
    windows = token_windows(shipped_text("evaluation"), load_tokenizer(dense.directory), tokens=2048)
    before, after = evaluate(dense, windows), evaluate(artifact, windows)
    assert after.sparsity == pytest.approx(SPARSITY, abs=0.02)
    assert after.sparsity_by_kind["up"] == after.sparsity_by_kind["down"] > 0.4
    assert after.sparsity_by_kind["gate"] < 0.01
    assert before.perplexity < after.perplexity < 1.2 * before.perplexity
    operators = [node.op_type for node in load_model(artifact.model_path).graph]
    assert operators.count("GatherMatMul" if weights == "fp32" else "GatherMatMulNBits") == 8
    logits = [
        next(
            run_prompt(open_session(artifact.model_path, ops_library=library), [5], ["logits"], **artifact.cache_shape)
        )[0]
        for library in (None, artifact.ops_library)
    ]
    np.testing.assert_allclose(
        logits[0], logits[1], atol=(1e-3 if weights == "fp32" else 0.05) * np.abs(logits[0]).max()
    )
