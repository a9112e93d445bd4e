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
from solver import Solver
from training.settings import CHOICES, RULES, broken_rule
from utils import Parser, boolean, count, run_cli


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
    """What is trained, and how."""
    # fmt: off
    add = parser.add_argument_group("run").add_argument
    add("--train", type=boolean, default=True, help="train; False: load the checkpoint, draw its pictures or score it")
    add("--max_iter", type=count, default=10**6, help="iterations, of one batch each, to train up to")
    add("--seed", type=count, default=1, help="seed of initialisation, data order, noise and the choice of pictures")
    add("--metrics", choices=LEVELS, default="none",
        help="score the trained model: full on all images; fast on an eighth, without DCI, in under a minute")
    add("--cuda", type=boolean, default=True, help="use a CUDA device when there is one")
    add("--threads", type=count, default=0, help="CPU threads; 0: torch's choice")
    add("--precision", choices=["float32", "bf16"], default="float32",
        help="of the network in training; losses and optimiser stay float32; on CUDA, float32 means TensorFloat-32")

    add = parser.add_argument_group("objective (weights of the KL and C in nats; the loss is summed over pixels)").add_argument
    add("--objective", choices=CHOICES["objective"], default="H",
        help="H: beta * KL (Higgins et al. eq. 4); B: gamma * |KL - C| (Burgess et al. eq. 8); TC: KL + (beta - 1) * total "
             "correlation (Chen et al.); restart: B, then a new encoder and TC with rising weights (misc/capacity.md)")
    add("--beta", type=float, default=4.0, help="H: weight of the KL; dSprites 4 (Higgins et al.); TC, restart: of the total correlation")
    add("--gamma", type=float, default=1000.0, help="B: weight of |KL - C|; 1000 (Burgess et al.)")
    add("--C_start", type=float, default=0.0, help="B: C at the start; 0 (Burgess et al.)")
    add("--C_max", type=float, default=25.0, help="B: C at the end; dSprites 25, CelebA 50 (Burgess et al.)")
    add("--C_stop_iter", type=count, default=10**5, help="B: iterations from C_start to C_max; 1e5 (Burgess et al.)")
    add("--delta", type=float, default=0.0,
        help="B: width of the pseudo-Huber smoothing of |KL - C|; 0: none (Burgess et al.)")
    add("--restart_iter", type=count, default=20_000, help="restart: iteration at which the encoder is drawn anew")
    add("--restart_beta", type=float, default=0.5, help="restart: weight of the KL right after that")
    add("--weak_iters", type=count, default=9000, help="restart: iterations for which the weight stays there")
    add("--rise_iters", type=count, default=8000, help="restart: iterations in which the weights then rise to those of TC")
    add("--dist", choices=CHOICES["dist"],
        help="p(x|z) of a pixel; without: bernoulli for dsprites and 3dchairs, gaussian for celeba and folder")

    add = parser.add_argument_group("network").add_argument
    add("--model", choices=CHOICES["model"], default="H",
        help="H convolutional, FC fully connected (Higgins et al.), B convolutional (Burgess et al.)")
    add("--z_dim", type=count, default=10, help="latents; dSprites 10, chairs and CelebA 32 (Higgins et al.)")

    add = parser.add_argument_group("optimiser").add_argument
    add("--optimizer", choices=CHOICES["optimizer"], default="adam", help="adagrad: dSprites in Higgins et al.")
    add("--lr", type=float, default=1e-4,
        help="learning rate; Higgins et al. 1e-4, with adagrad 1e-2; Burgess et al. 5e-4")
    add("--lr_start_iter", type=count, default=0, help="iteration at which the learning rate starts to fall")
    add("--lr_stop_iter", type=count, default=0, help="iteration at which a cosine has brought it to lr / 100; 0: constant")
    add("--beta1", type=float, default=0.9, help="decay of Adam's first moment, per iteration")
    add("--beta2", type=float, default=0.999, help="decay of Adam's second moment, per iteration")
    add("--batch_size", type=count, default=64, help="images a batch; in neither paper, as far as found")
    # fmt: on


def add_folder_flags(parser):
    """What it is trained on, and what it writes."""
    # fmt: off
    add = parser.add_argument_group("data").add_argument
    add("--dataset", type=str.lower, choices=CHOICES["dataset"], default="dsprites",
        help="data set, in any case; folder: the images in dset_dir and below")
    add("--dset_dir", default="data", help="folder of the data sets; of the images, for --dataset folder")
    add("--image_size", type=count, help="side of an image in pixels; without: the network's, 64 in both papers")
    add("--num_workers", type=count, default=2, help="threads that prepare images; training itself uses none")

    add = parser.add_argument_group("pictures and dashboard").add_argument
    add("--image", nargs="+", metavar="FILE", help="also draw reconstructions and traversals of these images at the end")
    add("--encode", metavar="FILE.npz", help="also write the codes (mu, logvar) of all images at the end")
    add("--save_output", type=boolean, default=True, help="write pictures; False: only log, checkpoints and scores")
    add("--gather_step", type=count, default=1000, help="iterations averaged in a row of log.csv; at most display_step")
    add("--display_step", type=count, default=10000, help="iterations between pictures")
    add("--viz_on", type=boolean, default=True, help="show the run on a visdom dashboard")
    add("--viz_server", default="localhost", help="host of the visdom server")
    add("--viz_port", type=count, default=8097, help="port of the visdom server")

    add = parser.add_argument_group("folders").add_argument
    add("--viz_name", default="main", help="name of the run: of its folders and of its dashboard")
    add("--output_dir", default="outputs", help="folder of all runs' curves and pictures")
    add("--ckpt_dir", default="checkpoints", help="folder of all runs' checkpoints")
    add("--save_step", type=count, default=10000, help="iterations between checkpoints")
    add("--ckpt_name", default="last",
        help="checkpoint to load: a name in the run's folder or a path; none: start afresh")
    add("--overwrite", type=boolean, default=False, help="replace an existing run of this name")
    # fmt: on


def is_path(value):
    """Whether files can have that name; of a list, each of those; None is no name that is wrong."""
    texts = value if isinstance(value, list) else [value or ""]
    try:
        return not any(b"\0" in os.fsencode(text) for text in texts)
    except UnicodeEncodeError:
        return False


def is_run_name(text):
    parts = Path(text).parts
    # m/7 would lie where the run m keeps its pictures of iteration 7, and m/last where its checkpoint is
    taken = any(
        part.isdecimal() or part in ("last", "previous") or part.endswith(".old") for part in parts[1:]
    )
    return bool(text.strip() and parts and not taken and not Path(text).is_absolute() and ".." not in parts)


FOLDERS = ["dset_dir", "output_dir", "ckpt_dir", "ckpt_name"]
NAMES = (  # rules as in training/settings.py
    (
        ["viz_name"],
        is_run_name,
        "a name for a folder inside output_dir, and none that another run's results may have",
    ),
    ([*FOLDERS, "viz_server"], lambda v: v, "given"),
    (["encode"], lambda v: v is None or Path(v).name, "a file"),
    ([*FOLDERS, "viz_name", "encode", "image"], is_path, "a name that files can have"),
)


def parse(argv=None, parser=None):
    """Flags as a namespace; what makes no sense ends the program with one line and status 2.

    parser: one that knows more flags than those of make_parser.
    """
    parser = parser or make_parser()
    args = parser.parse_args(argv)
    if broken := broken_rule(vars(args), (*RULES, *NAMES)):
        parser.error(f"--{broken[0]} must be {broken[1]}, not {getattr(args, broken[0])!r}")
    size = MODELS[args.model].image_size
    if args.image_size not in (None, size):
        parser.error(
            f"--model {args.model} takes images of {size}x{size} pixels: --image_size must be {size}"
        )
    args.image_size = size
    if not (args.train or args.save_output or args.encode or args.image) and args.metrics == "none":
        parser.error("--train False with --save_output False and --metrics none leaves nothing to do")
    if not args.train and args.ckpt_name == "none":
        parser.error("--train False needs a checkpoint: --ckpt_name none leaves nothing to draw or score")
    if 0 < args.lr_stop_iter <= args.lr_start_iter:
        parser.error(
            f"--lr_stop_iter must be after --lr_start_iter {args.lr_start_iter}, not {args.lr_stop_iter}"
        )
    if os.path.realpath(args.output_dir) == os.path.realpath(args.ckpt_dir):
        parser.error("--output_dir and --ckpt_dir must be two folders: both name things by iteration")
    args.gather_step = min(args.gather_step, args.display_step)  # or curves would be drawn without a point
    return args


def main(argv=None):
    """Runs the program; returns its exit status."""
    args = parse(argv)

    def run():
        solver = Solver(args)
        return solver.train() if args.train else solver.evaluate()

    return run_cli("main.py", "interrupted outside training: checkpoints are as they were", run)


if __name__ == "__main__":
    sys.exit(main())
