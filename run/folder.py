"""The two folders of a run, outputs/<viz_name> and checkpoints/<viz_name>, and whose they are."""

import contextlib
import json
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from prepare.sets import SETS
from run.checkpoint import Checkpoints
from run.machine import has_bf16
from utils import UserError, atomic_file

# Flags that do not make a run what it is: with another value of any other flag, it is another run.
FREE = (
    "train max_iter metrics cuda threads precision image_size init dset_dir num_workers image encode save_output gather_step "
    "display_step viz_on viz_server viz_port viz_name output_dir ckpt_dir save_step ckpt_name overwrite"
).split()
# Flags that a checkpoint or today's main.py may lack, and the value that stands for their absence.
ABSENT = {"C_start": 0.0, "lr_stop_iter": 0, "kl_weight": 1.0}


def defining_flags(arguments, names):
    """Select the flags in arguments, a dict, that make a run what it is; names: of the flags that main.py has."""
    arguments = {**ABSENT, **arguments}
    if "weak_iters" in arguments:
        arguments["kl_weight"] = 1.0  # another flag of that name, of an objective that is gone
    flags = {name: arguments[name] for name in (*names, *ABSENT) if name in arguments and name not in FREE}
    return {**flags, "dist": flags["dist"] or SETS[flags["dataset"]].distribution}


class RunFolder:
    """The folders of one run. args: the flags of main.py; machine: what the run computes on (run/machine.py).

    One process trains a run: it locks the checkpoints until the end of `with` or of the process, however that ends.
    """

    def __init__(self, args, machine):
        self.args, self.machine = args, machine
        self.outputs = Path(args.output_dir) / args.viz_name
        self.checkpoints = Checkpoints(Path(args.ckpt_dir) / args.viz_name)
        self.lock = FileLock(self.checkpoints.folder / "lock", thread_local=False)
        if args.train:
            self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
            try:
                self.lock.acquire(timeout=0)
            except Timeout:
                raise UserError(
                    f"another process is training {args.viz_name}: another run needs another --viz_name"
                ) from None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        """Let another process train the run; leave no folder of one that never began."""
        self.lock.release()
        if self.args.train and not self.outputs.exists():
            (self.checkpoints.folder / "lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the folder holds something
                self.checkpoints.folder.rmdir()

    def load(self):
        """Load the state in the checkpoint that args names, None to start anew. UserError if it is of another run than args.

        Where nothing is trained, args takes the flags that define the run from the checkpoint.
        """
        args, folder = self.args, self.checkpoints.folder
        if args.train and args.overwrite:
            return None
        if args.train and args.ckpt_name != "last" and self.checkpoints.paths():
            raise UserError(
                f"{folder} holds a run: leave out --ckpt_name to go on with it, or give another --viz_name"
            )
        state = self.checkpoints.load(args.ckpt_name)
        if state is None:
            if not args.train:
                raise UserError(f"--train False needs a checkpoint, and {folder} has none: train first")
        elif state["arguments"] is None:
            print(f"checkpoint {args.ckpt_name} has no flags (those given now count), noise or log")
        else:
            self.check_flags(state["arguments"])
            if args.train and args.init:
                print("the run goes on: --init is for new ones")
        return state

    def check_flags(self, arguments):
        """Raise UserError if the run of these saved flags is another one than that of args."""
        args = self.args
        saved, now = (defining_flags(flags, vars(args)) for flags in (arguments, vars(args)))
        if not args.train:
            vars(args).update(saved)
            if args.dataset == "folder" and args.dset_dir == "data":  # not given
                args.dset_dir = arguments["dset_dir"]
        elif others := [f"{k} {saved[k]} (now {now[k]})" for k in saved if saved[k] != now[k]]:
            then = "a new run needs another --viz_name, or --overwrite True to lose this one"
            raise UserError(f"run {args.viz_name} was made with other settings: {', '.join(others)}; {then}")

    def check_data(self, before, now):
        """Raise UserError if the checkpoint was made with other images. before: None or "dSprites" in old ones, of dSprites."""
        if self.args.train and before not in (None, now, now.split(",")[0]):
            what = f"run {self.args.viz_name} was made with {before}, and {self.args.dset_dir} holds {now}"
            raise UserError(f"{what}: find those, or train a new run under another --viz_name")

    def begin(self, iteration, log):
        """Make ready to train after iteration: remove a run that is replaced, write args.json and prepare the log."""
        args, folders = self.args, (self.outputs, self.checkpoints.folder)
        self.outputs.mkdir(parents=True, exist_ok=True)
        if args.overwrite:
            for path in [path for folder in folders for path in folder.iterdir() if path.name != "lock"]:
                if path.is_file():
                    path.unlink()
                elif path.name.isdecimal():  # other folders are those of runs named <viz_name>/..
                    shutil.rmtree(path)
        for folder in (*folders, *(path for path in self.outputs.iterdir() if path.name.isdecimal())):
            for left in folder.glob(".*.tmp"):  # a killed training was writing it
                left.unlink(missing_ok=True)
        log.begin(iteration)
        with atomic_file(self.outputs / "args.json") as file:
            file.write(json.dumps({"arguments": vars(args), **self.machine}, indent=2).encode())
        start = f"resumed at iteration {iteration:,}" if iteration else "a new run"
        on = f"{self.machine['device']}, {self.machine['threads']} threads, {args.precision}"
        print(f"{args.viz_name}: {start}; {on}; curves and pictures in {self.outputs}")
        if args.precision == "bf16" and self.machine["device"] == "cpu" and not has_bf16():
            print("this CPU only emulates bf16: --precision float32 is faster, up to ten times")
