"""Train a beta-VAE, or draw and score a trained one.

Commands:
    python main.py --dataset dsprites --objective B --model B --viz_name my_run
    python main.py --train False --viz_name my_run
    python main.py --train False --metrics full --viz_name my_run
"""

import argparse
import os
import sys
from pathlib import Path

from evaluation.metrics import LEVELS
from model import MODELS
from objectives import OBJECTIVES
from optimizers import OPTIMIZERS
from prepare.sets import SETS
from solver import Solver
from utils import Parser, UserError, boolean, count, file_name, run_cli, within

# Types of flags; float32 goes to about 3e38, and Muon's steps are up to 13 lr long.
whole, positive = within(count, 0, 2**62), within(count, 1, 2**62)
weight, rate, decay = within(float, 0, 1e38), within(float, 1e-38, 1e37), within(float, 0, 1)


def schedule(number):
    """An argparse type: a number, or points "ITERATION:NUMBER,.." as for objectives.scheduled()."""

    def points(text):
        if ":" not in text:
            return number(text)
        pairs = [point.split(":") for point in text.split(",")]
        iterations, values = [whole(i) for i, _ in pairs], [number(value) for _, value in pairs]
        if sorted(set(iterations)) != iterations:
            raise argparse.ArgumentTypeError(f"iterations must increase, not {text!r}")
        return tuple(zip(iterations, values))

    points.__name__ = number.__name__
    return points


def run_name(text):
    """argparse type: the name of a folder inside output_dir. A number below another run's folder is that run's iteration."""
    parts = Path(text).parts
    if not parts or parts[0] == "/" or ".." in parts or any(part.isdecimal() for part in parts[1:]):
        raise argparse.ArgumentTypeError(f"must be the name of a folder inside output_dir, not {text!r}")
    return text


def make_parser():
    parser = Parser(
        prog="main.py",
        description=__doc__.split("\n")[0],
        usage="%(prog)s [--FLAG VALUE ..]",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_training_flags(parser)
    add_folder_flags(parser)
    return parser


def add_training_flags(parser):
    """Add the flags that say what to train, and how."""
    # fmt: off
    add = parser.add_argument_group("run").add_argument
    add("--train", type=boolean, default=True, help="train; False: only load a checkpoint, to draw its pictures or score it")
    add("--max_iter", type=positive, default=10**6, help="total number of iterations, one batch each")
    add("--seed", type=whole, default=1, help="seed for initialisation, data order, noise and the choice of pictures")
    add("--metrics", choices=LEVELS, default="none",
        help="score the trained model: full on all images; fast on an eighth, without DCI, in under a minute")
    add("--cuda", type=boolean, default=True, help="use a CUDA device when there is one")
    add("--threads", type=within(count, 0, 4097), default=0, help="number of CPU threads; 0: torch's default")
    add("--precision", choices=["float32", "bf16"], default="float32",
        help="precision of the network in training; losses and averages stay in float32; on CUDA, float32 means TensorFloat-32")

    add = parser.add_argument_group("objective (the loss is in nats, summed over pixels and latents; so is C)").add_argument
    add("--objective", choices=OBJECTIVES, default="H",
        help="H: beta * KL (Higgins et al. eq. 4); B: gamma * |KL - C| (Burgess et al. eq. 8); TC: KL + (beta - 1) * total "
             "correlation (Chen et al.)")
    add("--beta", type=weight, default=4.0, help="H: weight of the KL, 4 on dSprites (Higgins et al.); TC: of the total correlation, which depends on --batch_size")
    add("--kl_weight", type=schedule(weight), default=1.0,
        help="TC: factor of all but the reconstruction, 1 (Chen et al.), or a schedule: 0:1,1e4:0.5 falls from 1 to 0.5 in 10,000 iterations")
    add("--gamma", type=weight, default=1000.0, help="B: weight of |KL - C|; 1000 (Burgess et al.)")
    add("--C_max", type=weight, default=25.0, help="B: C at the end; dSprites 25, CelebA 50 (Burgess et al.)")
    add("--C_stop_iter", type=positive, default=10**5, help="B: iterations from 0 to C_max; 1e5 (Burgess et al.)")
    add("--delta", type=weight, default=0.0, help="B: width of the pseudo-Huber smoothing of |KL - C|; 0: none (Burgess et al.)")
    add("--dist", choices=["bernoulli", "gaussian"],
        help="p(x|z) of a pixel; if not given: bernoulli for dsprites and 3dchairs, gaussian for others")

    add = parser.add_argument_group("network").add_argument
    add("--model", choices=MODELS, default="H", help="H convolutional, FC fully connected (Higgins et al.), B convolutional (Burgess et al.), S with a spatial broadcast decoder (Watters et al.)")
    add("--z_dim", type=within(count, 1, 1025), default=10, help="number of latents; 10 on dSprites, 32 on 3D Chairs and CelebA (Higgins et al.)")

    add = parser.add_argument_group("optimiser").add_argument
    add("--optimizer", choices=OPTIMIZERS, default="adam", help="optimiser; Higgins et al. use adagrad on dSprites, adam elsewhere; muon (Jordan et al.): the weights of hidden layers, the rest by adam")
    add("--lr", type=schedule(rate), default=1e-4,
        help="learning rate, or a schedule as for --kl_weight; Higgins et al.: 1e-4, or 1e-2 with adagrad; Burgess et al.: 5e-4")
    add("--beta1", type=decay, default=0.9, help="decay rate of Adam's first moment")
    add("--beta2", type=decay, default=0.999, help="decay rate of Adam's second moment")
    add("--batch_size", type=positive, default=64, help="images per batch; as far as we found, neither paper states it")
    # fmt: on


def add_folder_flags(parser):
    """Add the flags of data, pictures, dashboard and folders."""
    # fmt: off
    add = parser.add_argument_group("data").add_argument
    add("--dataset", type=str.lower, choices=SETS, default="dsprites",
        help="data set, case-insensitive; folder: all images in dset_dir and its subfolders")
    add("--dset_dir", type=file_name, default="data", help="folder of the data sets; for --dataset folder, of the images")
    add("--image_size", type=whole, help="width and height of an image in pixels; must be what the network takes, 64 in both papers")
    add("--num_workers", type=within(count, 0, 257), default=2,
        help="number of threads that prepare images; training does not use them")

    add = parser.add_argument_group("pictures and dashboard").add_argument
    add("--image", type=file_name, nargs="+", metavar="FILE", help="also draw reconstructions and traversals of these images at the end")
    add("--encode", type=file_name, metavar="FILE.npz", help="also write the codes (mu, logvar) of all images at the end")
    add("--save_output", type=boolean, default=True, help="write pictures; False: only the log, checkpoints and scores")
    add("--gather_step", type=positive, help="iterations averaged into each row of log.csv; if not given: 1000, or less for at least 20 rows")
    add("--display_step", type=positive, default=10000, help="iterations between pictures")
    add("--viz_on", type=boolean, default=True, help="show the run on a visdom dashboard")
    add("--viz_server", type=file_name, default="localhost", help="host of the visdom server")
    add("--viz_port", type=within(count, 1, 65536), default=8097, help="port of the visdom server")

    add = parser.add_argument_group("folders").add_argument
    add("--viz_name", type=run_name, default="main", help="name of the run, of its folders and of its page on the dashboard")
    add("--output_dir", type=file_name, default="outputs", help="folder for the logs and pictures of all runs")
    add("--ckpt_dir", type=file_name, default="checkpoints", help="folder for the checkpoints of all runs")
    add("--save_step", type=positive, default=10000, help="iterations between checkpoints")
    add("--ckpt_name", type=file_name, default="last", help="checkpoint to load: a name in the run's folder or a path")
    add("--init", type=file_name, metavar="FILE", help="start a new run from the weights of this checkpoint, which must fit the network")
    add("--overwrite", type=boolean, default=False, help="start anew, and remove an existing run of this name")
    # fmt: on


def parse(argv=None, parser=None, defaults=None):
    """Return the flags as a namespace; invalid ones end the program with one line and status 2.

    parser: one with more flags; defaults: a namespace of flags that count where argv does not name them.
    """
    parser = parser or make_parser()
    args = parser.parse_args(argv, defaults and argparse.Namespace(**vars(defaults)))
    size = MODELS[args.model].image_size
    if args.image_size not in (None, size):
        parser.error(
            f"--model {args.model} takes images of {size}x{size} pixels: --image_size must be {size}"
        )
    if os.path.realpath(args.output_dir) == os.path.realpath(args.ckpt_dir):
        parser.error("--output_dir and --ckpt_dir must be different folders: both name files by iteration")
    if args.train and args.overwrite and args.ckpt_name != "last":
        parser.error(
            "--overwrite True starts anew: leave out --ckpt_name; --init FILE starts from a file's weights"
        )
    if args.encode and not os.path.isdir(os.path.dirname(os.path.abspath(args.encode))):
        parser.error(f"--encode {args.encode}: the folder does not exist")
    args.image_size = size
    args.dist = args.dist or SETS[args.dataset].distribution
    args.gather_step = min(args.gather_step or max(1, min(1000, args.max_iter // 20)), args.display_step)
    return args


def main(argv=None):
    """Run the program; return its exit status."""
    args = parse(argv)

    def run():
        solver = Solver(args)
        if args.train:
            return solver.train()
        for name, given in vars(parse(argv, defaults=args)).items():  # args has the checkpoint's flags by now
            if given != getattr(args, name):
                raise UserError(f"{args.ckpt_name} was made with --{name} {getattr(args, name)}, not {given}")
        return solver.evaluate()

    return run_cli("main.py", "interrupted outside training: checkpoints are unchanged", run)


if __name__ == "__main__":
    sys.exit(main())
