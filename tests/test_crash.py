"""Trainings that are killed again and again, each called again with the same flags, until one call gets to the end.

    BETA_VAE_KILLS=200 python -m pytest tests/test_crash.py -s

Each call is a fork of this process, which saves the seconds of imports. It is killed at a random moment, or as it opens,
moves or removes a file of its run for the nth time.
"""

import os
import random
import signal
import sys
import threading
import time
import traceback
from functools import partial

import pytest
from tqdm import tqdm

import main
from helpers import assert_same_run
from run.checkpoint import read_checkpoint

KILLS = int(os.environ.get("BETA_VAE_KILLS", 5))
SAVE_STEP = 30
FLAGS = f"--batch_size 1 --max_iter 120 --gather_step 2 --display_step 60 --save_step {SAVE_STEP} --cuda no"


def kill_after(seconds, number=signal.SIGKILL):
    threading.Timer(seconds, os.kill, (os.getpid(), number)).start()


def kill_at_event(folder, nth):
    """Kill this process as it opens, moves or removes a file in folder for the nth time."""
    left = nth

    def audit(event, args):  # Python calls it before these things happen
        nonlocal left
        if event in ("open", "os.rename", "os.remove") and str(args[0]).startswith(str(folder)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)


def call(runs, name, kill=lambda: None):
    """Call main.py in a fork, in which kill() is called first; return its exit status."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        sys.stdout = sys.stderr = open(runs.folder / "output.txt", "a", buffering=1)
        tqdm.set_lock(
            threading.RLock()
        )  # its own is shared by all forks, and stays taken when one is killed in it
        kill()
        status = main.main(runs.command(name, FLAGS))
    except SystemExit as stop:  # SIGTERM outside the training loop
        status = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def lost(runs, name):
    """Return how many iterations of a killed run, those that its log has, are after its checkpoint."""
    log, saved = runs.outputs(name) / "log.csv", 0
    done = log.read_text().splitlines()[-1].split(",")[0] if log.exists() else ""
    for which in ("previous", "last"):
        if runs.checkpoint(name, which).exists():
            saved = read_checkpoint(runs.checkpoint(name, which))["iter"]
    return int(done) - saved if done.isdecimal() else 0


@pytest.mark.slow
def test_killed_in_any_way_and_amid_writing_a_run_ends_with_the_bytes_of_one_that_was_left_alone(runs):
    seed = random.randrange(10**6)
    rng, kills, number = random.Random(seed), 0, 0
    start = time.monotonic()
    assert call(runs, "whole") == 0
    length = time.monotonic() - start
    while kills < KILLS:
        number += 1
        name, status = f"run{number}", None
        while status != 0:
            ways = [
                partial(kill_after, rng.random() * length),
                partial(kill_after, rng.random() * length, signal.SIGTERM),
                partial(kill_at_event, runs.folder, rng.randrange(1, 150)),
            ]
            way = rng.choice(ways) if kills < KILLS else lambda: None
            status = call(runs, name, way)
            kills += status != 0
            said = f"seed {seed}: {(runs.folder / 'output.txt').read_text()}"
            assert status in (0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM), said
            assert "Traceback" not in said and lost(runs, name) <= SAVE_STEP, said
        assert_same_run(runs, "whole", name)
    print(f"{kills} kills in {number} runs, seed {seed}")
