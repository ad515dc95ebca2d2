"""How the command ends when it is told to."""

import signal
import subprocess
import sys
import time

import pytest

LEFT_RUNNING = """
import threading, time, sys
from sparsecc import __main__

def work(**_options):
    threading.Thread(target=time.sleep, args=(60,)).start()
    print("working", flush=True)
    time.sleep(60)

__main__._command_line = lambda: work
__main__.main()
"""


CLEANING_UP = """
import os, sys, tempfile, time
from sparsecc import __main__

def work(**_options):
    with tempfile.TemporaryDirectory(dir=sys.argv[1]):
        try:
            print("working", flush=True)
            time.sleep(60)
        finally:
            print("cleaning up", flush=True)
            time.sleep(1)

__main__._command_line = lambda: work
__main__.main()
"""

RESTORE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""
# Whoever runs the tests may ignore them, and then so would the process.


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_thread_that_a_library_left_running_keeps_no_process(number, status):
    process = subprocess.Popen([sys.executable, "-c", RESTORE + LEFT_RUNNING], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "working\n"
    started = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=30) == status
    assert time.monotonic() - started < 30


def test_a_terminal_that_closes_leaves_nothing_half_written(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", RESTORE + CLEANING_UP, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGHUP)
    assert process.stdout.readline() == "cleaning up\n"
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=30) == 129
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_is_to_outlive_its_terminal_does(tmp_path):
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", ignore + CLEANING_UP, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.terminate()
    assert process.wait(timeout=30) == 143


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(("eval", "x", "--tokens", "many"), "as an integer. See "), (("evil",), "Did you mean 'eval'? See ")],
)
def test_a_usage_error_is_one_line_of_sentences(arguments, complaint):
    command = [sys.executable, "-m", "sparsecc", *arguments]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert line.startswith("sparsecc: ")
    assert complaint in line
    assert line.endswith("--help.")
