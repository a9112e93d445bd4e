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
from training.settings import defining_flags, fault_of_flags, other_settings, saved_flags
from utils import UserError, atomic_file, git_commit


class RunFolder:
    """outputs/<viz_name> and checkpoints/<viz_name>: what is in them, and what of it is this run's own.

    args: the flags of main.py. A run that trains locks both folders, until the end of `with`, or of its process.
    """

    def __init__(self, args):
        self.args = args
        self.checkpoints = Checkpoints(Path(args.ckpt_dir) / args.viz_name)
        self.outputs = Path(args.output_dir) / args.viz_name
        folders = (self.checkpoints.folder, self.outputs) if args.train else ()
        self.locks = [lock_run(folder) for folder in folders]  # before anything of another run is read

    def __enter__(self):
        return self

    def __exit__(self, *error):
        """Lets another process, or another Solver of this one, train the run."""
        for lock in filter(None, self.locks):
            lock.release()

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
            have = f"has weights and optimiser of iteration {state['iter']:,}"
            print(f"checkpoint {args.ckpt_name} {have}, but no flags (those given now count), noise or log")
        else:
            self.check_flags(state["arguments"])
        return state

    def check_flags(self, arguments):
        """UserError if the run in a checkpoint, of these flags, is another one than that of args."""
        args, name = self.args, self.args.ckpt_name
        saved = saved_flags(arguments)
        if fault := fault_of_flags(saved):
            raise UserError(f"checkpoint {name} is damaged or of another program: {fault}")
        if not args.train:
            vars(args).update(defining_flags(saved))
            images = str(getattr(saved, "dset_dir", args.dset_dir))
            if (
                saved.dataset == "folder" and args.dset_dir == "data" != images
            ):  # else it is prepared for nothing
                raise UserError(f"checkpoint {name} is of the images in {images}: give --dset_dir {images}")
        elif others := other_settings(saved, args):
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

    def last_own_iter(self, iteration):
        """The iteration up to which log and results under the run's name are its own, when it goes on from iteration.

        That is iteration itself for its own last or an older checkpoint, and 0 for a fresh start and for the
        checkpoint of another run.
        """
        name, folder = self.args.ckpt_name, self.checkpoints.folder.resolve()
        return iteration if name == "last" or self.checkpoints.path(name).resolve().parent == folder else 0

    def begin(self, iteration, log, machine, save, images):
        """Makes ready to train after iteration: log, args.json, and what is of a replaced run set aside or removed.

        machine: what it trains on (utils.machine); save: writes the checkpoint of iteration; images: how many.
        """
        args = self.args
        own = self.last_own_iter(iteration)
        goes_on = args.ckpt_name == "last" and iteration > 0
        for folder in (self.outputs, self.checkpoints.folder):
            folder.mkdir(parents=True, exist_ok=True)
            for left in (*folder.glob(".*.tmp"), *folder.glob("[0-9]*/.*.tmp")):  # a killed training wrote it
                left.unlink(missing_ok=True)
        log.open(own, keep=not goes_on)
        if args.overwrite and args.ckpt_name != "last":
            if iteration:
                save()
            self.checkpoints.forget(own, iteration)
        if not goes_on:
            self.set_aside_results(own)
        about = {"arguments": vars(args), **machine, "commit": git_commit()}
        before = self.earlier_parts(iteration) if own else []
        with atomic_file(self.outputs / "args.json") as file:
            file.write(json.dumps({**about, "before": before}, indent=2).encode())
        start = f"resumed at iteration {iteration:,}" if iteration else "a new run"
        on = f"{machine['device']}, {machine['threads']} threads, {machine['precision']}"
        print(f"{args.viz_name}: {start}; {images:,} images; {on}; curves and pictures in {self.outputs}")
        avx2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
        if avx2 and (machine["device"], machine["precision"]) == ("cpu", "bf16"):
            print("this CPU has no bf16 (no AVX-512): --precision float32 is about ten times as fast")

    def earlier_parts(self, iteration):
        """What args.json said of code and machine when this run was started before: a dict a part, until an iteration."""
        try:
            about = json.loads((self.outputs / "args.json").read_text())
            before = about.pop("before", [])
            about.pop("arguments")
            return [part for part in before if part["until"] < iteration] + [{"until": iteration, **about}]
        except (OSError, ValueError, LookupError, TypeError, AttributeError):  # none, or a file of others
            return []

    def set_aside_results(self, last_own):
        """Renames the folders of pictures and scores of later iterations: they are of the run that is replaced."""
        for folder in list(self.outputs.iterdir()):
            # a folder of that name may be the run m/7, beside the run m
            is_run = (folder / LOCK).exists() or (folder / "args.json").exists()
            if folder.name.isdecimal() and int(folder.name) > last_own and not is_run:
                old = folder.with_name(f"{folder.name}.old")
                shutil.rmtree(old, ignore_errors=True)
                folder.rename(old)


def compare_machines(before, now):
    """Says what about the machine changes the digits of a resumed run. before: a checkpoint; now: from utils.machine."""
    for name in ("device", "threads", "precision"):
        value = before.get(name, "float32")  # checkpoints from before --precision have none
        if value != now[name]:
            line = f"the checkpoint was made with {name} {value}, this is {now[name]}: digits may differ"
            print(f"{line} from those of a run without a break")


class StopSignals:
    """Within `with`: the first Ctrl-C, SIGTERM, SIGHUP (terminal closed) or SIGUSR1 (SLURM's warning) is kept in
    .received, a second ends the process. Outside the main thread, where Python has no signals, it does nothing.

    Launchers may send one twice, to a process and to its group, and Linux sends the signal of a parent's death once
    for each thread of the parent: what comes within REPEAT seconds is no second one.
    """

    REPEAT = 0.5
    NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")

    def __enter__(self):
        self.received, self.handlers = None, {}
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in self.NAMES if hasattr(signal, name)]
            for number in numbers:
                before = signal.signal(number, self.receive)
                if before == signal.SIG_IGN and number != signal.SIGINT:  # nohup: the launcher's choice stays
                    signal.signal(number, before)
                else:
                    self.handlers[number] = before
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
