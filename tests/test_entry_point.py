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


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_thread_that_a_library_left_running_keeps_no_process(number, status):
    restore = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    process = subprocess.Popen([sys.executable, "-c", restore + LEFT_RUNNING], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "working\n"
    started = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=30) == status
    assert time.monotonic() - started < 30
