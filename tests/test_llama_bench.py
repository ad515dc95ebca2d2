"""llama.cpp as a peer, with executables that answer as llama-bench does or fail as it may."""

import json
import os
import sys
from pathlib import Path

import pytest

from sparsecc.errors import SparseccError
from sparsecc.llama_bench import LlamaBench, check_gguf, find_llama_bench

PROMPT = {"n_prompt": 64, "n_gen": 0, "samples_ns": [800_000_000], "model_size": 1_000_000}
DECODE = {"n_prompt": 0, "n_gen": 16, "samples_ns": [400_000_000], "model_size": 1_000_000}


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(1000))
    return file


@pytest.fixture
def script(tmp_path: Path):
    """Make an executable Python script."""

    def make(content: str) -> Path:
        file = tmp_path / "llama-bench"
        file.write_text(f"#!{sys.executable}\nimport json, sys\n{content}\n")
        file.chmod(0o755)
        return file

    return make


def printing(value: object) -> str:
    return f"print({json.dumps(value)!r})"


def test_a_turn_is_read_from_the_json(script, gguf):
    turn, tensor_bytes = LlamaBench(script(printing([PROMPT, DECODE])), gguf).turn(2, 64, 16)
    assert turn.token_seconds == [0.025]
    assert turn.prefill_seconds == 0.8
    assert turn.resident_bytes is None
    assert tensor_bytes == 1_000_000


def test_how_threads_wait_is_left_to_llama_cpp(script, gguf, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    check = "import os\nassert 'OMP_WAIT_POLICY' not in os.environ"
    LlamaBench(script(f"{check}\n{printing([PROMPT, DECODE])}"), gguf).turn(2, 64, 16)


def test_the_setting_is_handed_over(script, gguf, tmp_path):
    log = tmp_path / "arguments"
    executable = script(f"open({str(log)!r}, 'w').write(' '.join(sys.argv[1:])); {printing([PROMPT, DECODE])}")
    LlamaBench(executable, gguf).turn(3, 64, 16)
    assert log.read_text() == f"-m {gguf} -o json -r 1 -t 3 -p 64 -n 16"


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        [],
        [PROMPT],
        [PROMPT, PROMPT, DECODE],
        [PROMPT, {**DECODE, "samples_ns": []}],
        [PROMPT, {**DECODE, "samples_ns": ["fast"]}],
        [PROMPT, {**DECODE, "samples_ns": [0]}],
        [PROMPT, {**DECODE, "model_size": None}],
        [PROMPT, {**DECODE, "model_size": -1}],
    ],
)
def test_json_of_another_kind_is_refused(script, gguf, answer):
    with pytest.raises(SparseccError, match="did not print"):
        LlamaBench(script(printing(answer)), gguf).turn(2, 64, 16)


def test_what_is_no_json_is_refused(script, gguf):
    with pytest.raises(SparseccError, match="did not print"):
        LlamaBench(script("print('| model | t/s |')"), gguf).turn(2, 64, 16)


def test_a_failure_is_told_in_the_last_line_of_its_log(script, gguf):
    executable = script("sys.exit('loading\\nerror: failed to load model')")
    with pytest.raises(SparseccError, match="error: failed to load model") as raised:
        LlamaBench(executable, gguf).turn(2, 64, 16)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_program_is_refused(gguf, tmp_path):
    executable = tmp_path / "llama-bench"
    executable.write_bytes(b"\x7fELF")
    executable.chmod(0o755)
    with pytest.raises(SparseccError, match="cannot be run"):
        LlamaBench(executable, gguf).turn(2, 64, 16)


def test_the_executable_is_found_where_the_shell_would_find_it(script, monkeypatch):
    executable = script("")
    monkeypatch.setenv("PATH", str(executable.parent))
    assert find_llama_bench(None) == executable
    assert find_llama_bench(executable) == executable


def test_a_missing_executable_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SparseccError, match="give --llama-bench PATH"):
        find_llama_bench(None)
    (tmp_path / "plain").write_text("")
    for path in (tmp_path / "nowhere", tmp_path / "plain", tmp_path):
        with pytest.raises(SparseccError, match="not an executable file"):
            find_llama_bench(os.fspath(path))


def test_only_gguf_files_are_taken(gguf, tmp_path):
    check_gguf(gguf)
    (tmp_path / "other").write_bytes(b"GG")
    with pytest.raises(SparseccError, match="is no GGUF file"):
        check_gguf(tmp_path / "other")
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(SparseccError, match="cannot be read"):
            check_gguf(path)
