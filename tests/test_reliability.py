"""What can go wrong, and that nothing is lost by it and no harm done."""
import os
import random
import signal
import time

from utils import lock_holder, take_folder


def wait_for(path, process):
    start = time.time()
    while not path.exists():
        assert process.poll() is None and time.time() - start < 60
        time.sleep(0.01)


# Two at once.

def files(folder):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file() and p.name != "lock"}


def test_a_second_training_of_a_run_is_refused_by_the_pid_of_the_first_and_changes_nothing(runs):
    first = runs.start("run", "--max_iter", 10**6, "--save_step", 10**6, "--gather_step", 10**6, "--display_step", 10**6)
    wait_for(runs.outputs("run") / "args.json", first)
    try:
        before = files(runs.folder)
        for flags in ([], ["--ckpt_dir", runs.folder / "other"], ["--output_dir", runs.folder / "other"],
                      ["--ckpt_name", "none", "--overwrite", "True"]):
            error = runs.run("run", *flags, status=1).stderr
            assert f"pid {first.pid} on {os.uname().nodename}" in error and error.count("\n") == 1
        assert files(runs.folder) == before
        assert lock_holder(runs.outputs("run")) == lock_holder(runs.checkpoint("run").parent) \
            == f"pid {first.pid} on {os.uname().nodename}"
    finally:
        first.kill()
        first.communicate()
    assert lock_holder(runs.outputs("run")) is None  # it dies with its process
    runs.run("run", "--max_iter", 8)


def test_a_child_does_not_keep_the_lock_of_a_process_that_is_gone(tmp_path):
    reader, writer = os.pipe()
    if not (first := os.fork()):
        lock = take_folder(tmp_path)
        if not (child := os.fork()):
            time.sleep(60)
        os.write(writer, f"{child}".encode())
        time.sleep(60)
        os._exit(lock is None)
    child = int(os.read(reader, 20))
    try:
        assert lock_holder(tmp_path).startswith(f"pid {first} on")
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
        os.kill(child, 0)  # is there
        assert lock_holder(tmp_path) is None
        take_folder(tmp_path).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(reader), os.close(writer)
    assert lock_holder(tmp_path / "nothing") is None


# Crashes.

def test_killed_in_any_way_and_amid_writing_a_run_ends_with_the_bytes_of_one_that_was_left_alone(tmp_path, dset_dir):
    import crash
    table, _, faults = crash.campaign(tmp_path, dset_dir, kills=20, minutes=2, seed=random.random(), draw=False)
    assert faults == [] and sum(kills for kills, _, _ in table.values()) >= 10
