"""The folders of a run, and the signals that stop it."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import torch

from training.checkpoint import Checkpoints
from training.lock import LOCK, lock_run
from training.machine import compare_machines
from training.settings import defining_flags, other_settings, saved_flags
from utils import ENDING, UserError, atomic_file


class RunFolder:
    """outputs/<viz_name> and checkpoints/<viz_name>: what is in them, and what of it is this run's own.

    args: the flags of main.py; machine: what it runs on (training/machine.py). A run that trains locks both folders, until
    the end of `with`, or of its process.
    """

    def __init__(self, args, machine):
        self.args, self.machine = args, machine
        self.checkpoints = Checkpoints(Path(args.ckpt_dir) / args.viz_name)
        self.outputs = Path(args.output_dir) / args.viz_name
        folders = (self.checkpoints.folder, self.outputs) if args.train else ()
        self.locks = [lock_run(folder) for folder in folders]  # before anything of another run is read

    def release(self):
        """Lets another process, or another Solver of this one, train the run."""
        for lock in filter(None, self.locks):
            lock.release()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.release()

    def load(self):
        """The state in the checkpoint that args names, None if there is none; UserError if it does not fit args.

        Where nothing is trained, args takes the flags that define the run from the checkpoint.
        """
        args, folder = self.args, self.checkpoints.folder
        if args.train and args.ckpt_name != "last" and not args.overwrite and self.checkpoints.paths():
            raise UserError(
                f"{folder} holds checkpoints that --ckpt_name {args.ckpt_name} would overwrite: leave it out to go "
                "on with them; else give another --viz_name, or --overwrite True to lose them"
            )
        state = None if args.ckpt_name == "none" else self.checkpoints.load(args.ckpt_name)
        if state is None:
            if not args.train:
                raise UserError(f"--train False needs a checkpoint, and {folder} has none: train first")
        elif state["arguments"] is None:
            print(f"checkpoint {args.ckpt_name} has no flags (those given now count), noise or log")
        else:
            self.check_flags(state["arguments"])
            if args.train:
                compare_machines(state, self.machine)
        return state

    def check_flags(self, arguments):
        """UserError if the run in a checkpoint, of these flags, is another one than that of args."""
        args, name = self.args, self.args.ckpt_name
        try:
            saved = saved_flags(arguments)
            flags, others = defining_flags(saved), other_settings(saved, args)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"checkpoint {name} is damaged or of another program: {error}") from error
        if not args.train:
            vars(args).update(flags)
            if saved.dataset == "folder" and args.dset_dir == "data" != saved.dset_dir:  # not given
                raise UserError(f"checkpoint {name} is of other images: give --dset_dir {saved.dset_dir}")
        elif others:
            made, then = f"checkpoint {name}", "it goes on with those only"
            if name == "last":
                made = f"run {args.viz_name}"
                then = "a new run needs another --viz_name, or --ckpt_name none --overwrite True to lose this one"
            raise UserError(f"{made} was made with other settings: {', '.join(others)}; {then}")

    def check_data(self, before, now):
        """UserError if the checkpoint was made with other images. before: None or "dSprites" in old ones, of dSprites."""
        if before not in (None, now, now.split(",")[0]):
            what = f"run {self.args.viz_name} was made with {before}, and {self.args.dset_dir} holds {now}"
            raise UserError(f"{what}: find those, or train a new run under another --viz_name")

    def begin(self, iteration, log, save):
        """Makes ready to train after iteration: log, args.json, and what is of a replaced run set aside or removed.

        save: writes the checkpoint of iteration.
        """
        args, resumed = self.args, self.args.ckpt_name == "last" and iteration > 0
        for folder in (self.outputs, self.checkpoints.folder):
            for left in (*folder.glob(".*.tmp"), *folder.glob("[0-9]*/.*.tmp")):  # a killed training wrote it
                left.unlink(missing_ok=True)
        # Log and results are this run's own up to that iteration: none are if it starts from another run's checkpoint.
        inside = self.checkpoints.path(args.ckpt_name).resolve().parent == self.checkpoints.folder.resolve()
        own = iteration if resumed or inside else 0
        log.begin(own, keep=not resumed)
        if not resumed:
            if iteration:
                save()
            self.checkpoints.forget(own, iteration)
            self.set_aside_results(own)
        about = {"arguments": vars(args), **self.machine}
        with atomic_file(self.outputs / "args.json") as file:
            file.write(json.dumps(about, indent=2).encode())
        start = f"resumed at iteration {iteration:,}" if iteration else "a new run"
        on = f"{self.machine['device']}, {self.machine['threads']} threads, {args.precision}"
        print(f"{args.viz_name}: {start}; {on}; curves and pictures in {self.outputs}")
        avx2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
        if avx2 and self.machine["device"] == "cpu" and args.precision == "bf16":
            print("this CPU has no bf16 (no AVX-512): --precision float32 is about ten times as fast")

    def set_aside_results(self, last_own):
        """Renames the folders of pictures and scores of later iterations: they are of the run that is replaced."""
        for folder in list(self.outputs.glob("[0-9]*")):
            # a folder of that name may be the run m/7, beside the run m
            is_run = (folder / LOCK).exists() or (folder / "args.json").exists()
            if folder.name.isdecimal() and int(folder.name) > last_own and not is_run:
                old = folder.with_name(f"{folder.name}.old")
                shutil.rmtree(old, ignore_errors=True)
                folder.rename(old)


class StopSignals:
    """Within `with`: the first Ctrl-C or signal of utils.ENDING is kept in .received, a second ends the process.
    Outside the main thread, where Python has no signals, it does nothing.

    What comes within REPEAT seconds is no second one: launchers may send one to a process and to its group.
    """

    REPEAT = 0.5
    NAMES = ("SIGINT", *ENDING)

    def __enter__(self):
        self.received, self.handlers = None, {}
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in self.NAMES if hasattr(signal, name)):
                # nohup: what the launcher ignores stays ignored, but for SIGINT, which shells ignore in the background
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                    self.handlers[number] = signal.signal(number, self.receive)
        return self

    def receive(self, number, frame):
        if self.received is None:
            self.received, self.at = number, time.monotonic()
        elif time.monotonic() > self.at + self.REPEAT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def __exit__(self, *error):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
