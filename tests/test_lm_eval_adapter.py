"""lm-evaluation-harness runs a compiled model on a local task, and scores as sparsecc itself does."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from lm_eval.api.instance import Instance

from sparsecc.errors import SparseccError
from sparsecc.evaluation import MeasuredModel
from sparsecc.lm_eval_adapter import SparseccLM

from .conftest import THREADS

QUESTIONS = [
    {"question": "It was a dark and stormy", "choices": [" night", " xylophone"], "answer": 0},
    {"question": "He took off his", "choices": [" quantum", " hat"], "answer": 1},
    {"question": "She opened the", "choices": [" door", " zzz"], "answer": 0},
]
TASK = """
task: local_task
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
"""


def exact_scores(model, ids):
    logits = np.concatenate(list(model.logits(np.array(ids)))).astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def instance(kind, *arguments):
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


@pytest.fixture(scope="module")
def adapter(dense):
    return SparseccLM(str(dense.directory), threads=THREADS, batch_size=1)


@pytest.mark.slow
def test_the_harness_runs_a_local_task(dense, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    (tmp_path / "local_task.yaml").write_text(TASK.format(data=data))
    command = [sys.executable, "-m", "sparsecc.lm_eval_adapter", "--model", "sparsecc"]
    command += ["--model_args", f"path={dense.directory}", "--tasks", "local_task"]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "results")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    process = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, **offline})
    assert process.returncode == 0, process.stderr
    (results,) = (tmp_path / "results").rglob("results*.json")
    assert json.loads(results.read_text())["results"]["local_task"]["acc,none"] == 1


def test_a_missing_model_is_refused(tmp_path):
    with pytest.raises(SparseccError, match="is not a directory"):
        SparseccLM(path=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("", "no model is named"),
        ("path=", "no model is named"),
        ("path={}/nowhere", "is not a directory"),
        ("path=7", "7 is not a directory"),
        ("pth={}", "no model argument 'pth'"),
        ("path={},thread=3", "no model argument 'thread'"),
        ("path={},threads=x", "threads=x is no number"),
        ("path={},threads=0", "threads=0 is no number"),
        ("path={},threads=2.5", "threads=2.5 is no number"),
        ("path={},threads=true", "threads=True is no number"),
    ],
)
def test_a_mistaken_argument_is_refused(dense, arguments, complaint):
    with pytest.raises(SparseccError, match=complaint):
        SparseccLM.create_from_arg_string(arguments.format(dense.directory), {"batch_size": 1, "device": None})


@pytest.mark.slow
def test_a_mistaken_argument_is_one_line_of_the_command(dense, tmp_path):
    command = [sys.executable, "-m", "sparsecc.lm_eval_adapter", "--model", "sparsecc", "--tasks", "local_task"]
    (tmp_path / "local_task.yaml").write_text(TASK.format(data=tmp_path / "data.jsonl"))
    command += ["--include_path", str(tmp_path), "--model_args", f"path={dense.directory}", "thread=3"]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    assert process.returncode == 2
    assert "Traceback" not in process.stderr
    assert process.stderr.strip().splitlines()[-1].startswith("sparsecc: there is no model argument 'thread'")


def test_what_the_harness_gives_may_be_an_argument_too(dense):
    arguments = {"path": str(dense.directory), "batch_size": 4, "trust_remote_code": True}
    SparseccLM.create_from_arg_obj(arguments, {"batch_size": 1, "max_batch_size": 8, "device": "cpu"})


def test_an_empty_continuation_is_certain(adapter):
    pairs = [("", ""), ("It was", " a"), ("It was", ""), ("It was ", "")]
    scores = adapter.loglikelihood([instance("loglikelihood", *pair) for pair in pairs], disable_tqdm=True)
    assert [scores[0], scores[2], scores[3]] == [(0.0, True)] * 3
    assert scores[1][0] < 0
    assert adapter.loglikelihood_rolling([instance("loglikelihood_rolling", "")], disable_tqdm=True) == [0]


def test_likelihoods_are_those_of_the_model(adapter, dense):
    context, continuation = "It was a dark", " night and the rain fell"
    ((score, is_greedy),) = adapter.loglikelihood([instance("loglikelihood", context, continuation)], disable_tqdm=True)
    ids = adapter.tok_encode(context + continuation)
    start = len(adapter.tok_encode(context))
    log_p = exact_scores(MeasuredModel(dense, THREADS), ids)[start - 1 : -1]
    targets = np.array(ids[start:])
    assert score == pytest.approx(log_p[np.arange(len(targets)), targets].sum(), rel=1e-4)
    assert is_greedy == bool((log_p.argmax(axis=1) == targets).all())


def test_a_text_longer_than_the_context_is_scored_whole(adapter):
    text = "It was a dark night. " * 400
    tokens = len(adapter.tok_encode(text))
    assert tokens > adapter.max_length
    (score,) = adapter.loglikelihood_rolling([instance("loglikelihood_rolling", text)], disable_tqdm=True)
    assert -2 * tokens < score < -0.001 * tokens


def test_generation_stops_where_it_is_asked_to(adapter):
    options = {"until": ["."], "max_gen_toks": 40}
    (text,) = adapter.generate_until([instance("generate_until", "It was a dark night", options)], disable_tqdm=True)
    assert text.strip()
    assert "." not in text
