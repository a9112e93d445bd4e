"""Trains a beta-VAE, or draws the pictures of a trained one, and scores it.

Commands:
    python main.py --dataset dsprites --objective B --model B --viz_name my_run
    python main.py --train False --viz_name my_run
    python main.py --train False --metrics full --viz_name my_run
"""

import argparse
import contextlib
import os
import sys
from pathlib import Path

from dataset import DATASETS
from evaluation.metrics import LEVELS
from model import MODELS
from solver import Solver
from training.settings import CHOICES, RULES, broken_rule
from utils import Parser, boolean, count, exit_status


def make_parser():
    parser = Parser(
        prog="main.py",
        description=__doc__.split("\n")[0],
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    # fmt: off
    add("--train", type=boolean, default=True, help="train; False: load the checkpoint and write its pictures")
    add("--seed", type=count, default=1, help="of initialisation, data order, noise and the choice of pictures")
    add("--cuda", type=boolean, default=True, help="use a CUDA device when there is one")
    add("--precision", choices=["float32", "bf16"], default="float32",
        help="of the network in training; bf16 (bfloat16) is faster on some processors (README, Speed); losses, sums and Adam "
             "stay float32; may change when a run goes on; on CUDA, float32 means TensorFloat-32")
    add("--threads", type=count, default=0, help="CPU threads; 0: torch's choice")
    add("--max_iter", type=count, default=10**6, help="iterations, of one batch each, to train up to")
    add("--batch_size", type=count, default=64, help="images a batch; in neither paper, as far as found")

    add("--z_dim", type=count, default=10, help="latents; dSprites 10, chairs and CelebA 32 (Higgins et al.)")
    add("--beta", type=float, default=4.0, help="weight of the KL in objective H; dSprites 4 (Higgins et al.)")
    add("--objective", choices=CHOICES["objective"], default="H",
        help="H: beta * KL (Higgins et al. eq. 4); B: gamma * |KL - C| (Burgess et al. eq. 8)")
    add("--dist", choices=CHOICES["dist"],
        help="p(x|z) of a pixel; without: bernoulli for dsprites and 3dchairs, gaussian for celeba and folder")
    add("--model", choices=MODELS, default="H",
        help="network: H convolutional and FC fully connected (Higgins et al.), B (Burgess et al.)")
    add("--gamma", type=float, default=1000.0, help="weight of |KL - C| in objective B; 1000 (Burgess et al.)")
    add("--C_start", type=float, default=0.0, help="C at the start in objective B, nats; 0 (Burgess et al.)")
    add("--C_max", type=float, default=25.0,
        help="C at the end in objective B, nats; dSprites 25, CelebA 50 (Burgess et al.)")
    add("--C_stop_iter", type=count, default=10**5,
        help="iterations in which C goes from C_start to C_max; 1e5 (Burgess et al.)")
    add("--delta", type=float, default=0.0,
        help="nats within which the bars of |KL - C| are rounded off in objective B; 0: not (Burgess et al.)")
    add("--restart_iter", type=count, default=20_000,
        help="iteration at which objective restart draws the encoder anew and goes from B to TC")
    add("--restart_beta", type=float, default=0.5, help="weight of the KL right after the restart")
    add("--weak_iters", type=count, default=9000, help="iterations for which it stays there")
    add("--rise_iters", type=count, default=8000,
        help="iterations in which the weight of the KL then goes to 1, that of the total correlation to beta")
    add("--optimizer", choices=CHOICES["optimizer"], default="adam",
        help="adam; adagrad on dSprites in Higgins et al.")
    add("--lr", type=float, default=1e-4,
        help="learning rate; Higgins et al.: 1e-4 (chairs, CelebA), 1e-2 with adagrad (dSprites); Burgess et al.: 5e-4")
    add("--lr_start_iter", type=count, default=0, help="iteration at which the learning rate starts to fall (cosine)")
    add("--lr_stop_iter", type=count, default=0, help="iteration at which it has fallen to a hundredth; 0: constant")
    add("--beta1", type=float, default=0.9, help="decay of Adam's first moment, per iteration")
    add("--beta2", type=float, default=0.999, help="decay of Adam's second moment, per iteration")

    add("--dset_dir", default="data", help="folder of the data sets; of the images, for --dataset folder")
    add("--dataset", type=str.lower, choices=DATASETS, default="dsprites",
        help="data set, in any case; folder: the images in dset_dir and below")
    add("--image_size", type=count, default=64, help="side of an image in pixels; both papers' networks take 64")
    add("--num_workers", type=count, default=2, help="processes that prepare images; training itself uses none")

    add("--viz_on", type=boolean, default=True, help="show the run on a visdom dashboard")
    add("--viz_name", default="main", help="name of the run: of its folders and of its dashboard")
    add("--viz_server", default="localhost", help="host of the visdom server")
    add("--viz_port", type=count, default=8097, help="port of the visdom server")
    add("--save_output", type=boolean, default=True,
        help="write pictures; False: only log, arguments, checkpoints and scores")
    add("--metrics", choices=LEVELS, default="none",
        help="score the trained model: full on all images, fast on an eighth and without DCI, in under a minute")
    add("--output_dir", default="outputs", help="folder of all runs' curves and pictures")
    add("--gather_step", type=count, default=1000, help="iterations averaged in one row of log.csv")
    add("--display_step", type=count, default=10000, help="iterations between pictures")
    add("--save_step", type=count, default=10000, help="iterations between checkpoints")
    add("--ckpt_dir", default="checkpoints", help="folder of all runs' checkpoints")
    add("--ckpt_name", default="last",
        help="checkpoint to load: a name in the run's folder or a path; none: start afresh")
    add("--overwrite", type=boolean, default=False,
        help="let a run that starts afresh, or from another checkpoint than last, replace the one of its name")
    # fmt: on
    return parser


def is_path(text):
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def parse(argv=None, parser=None):
    """Flags as a namespace; what makes no sense ends the program with one line and status 2.

    parser: one that knows more flags than those of make_parser.
    """
    parser = parser or make_parser()
    args = parser.parse_args(argv)
    rules = (
        *RULES,
        (
            ["viz_name"],
            lambda v: v.strip() and not Path(v).is_absolute() and ".." not in Path(v).parts and Path(v).parts,
            "a name for a folder inside output_dir",
        ),
        (["dset_dir", "output_dir", "ckpt_dir", "ckpt_name", "viz_server"], lambda v: v, "given"),
        (
            ["dset_dir", "output_dir", "ckpt_dir", "ckpt_name", "viz_name"],
            is_path,
            "a name that files can have",
        ),
    )
    if broken := broken_rule(vars(args), rules):
        parser.error(f"--{broken[0]} must be {broken[1]}, not {getattr(args, broken[0])!r}")
    if not (args.train or args.save_output) and args.metrics == "none":
        parser.error("--train False with --save_output False and --metrics none leaves nothing to do")
    if not args.train and args.ckpt_name == "none":
        parser.error("--train False needs a checkpoint: --ckpt_name none leaves nothing to draw or score")
    if os.path.realpath(args.output_dir) == os.path.realpath(args.ckpt_dir):
        parser.error("--output_dir and --ckpt_dir must be two folders: both name things by iteration")
    return args


def main(argv=None):
    """Runs the program; returns its exit status."""
    args = parse(argv)

    def run():
        solver = Solver(args)
        if args.train:
            with solver.dashboard if args.viz_on else contextlib.nullcontext():
                return solver.train()
        if args.metrics == "none":
            solver.draw()
        solver.evaluate()

    return exit_status("main.py", "interrupted outside training: checkpoints are as they were", run)


if __name__ == "__main__":
    sys.exit(main())
