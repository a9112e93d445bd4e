"""One run: builds or loads the network, trains it, and decides when to log, save and draw."""

import contextlib

import torch
from tqdm import tqdm

import objectives
from dataset import return_data
from evaluation.evaluator import Evaluator, read_image
from model import MODELS
from training.checkpoint import Checkpoints, load_noise, load_optimizer
from training.log import Log, Window
from training.run import RunFolder, StopSignals, compare_machines
from utils import (
    ACTIVE,
    Order,
    UserError,
    all_finite,
    first_line,
    git_commit,
    keep_freed_memory,
    machine,
    progress,
    set_up_device,
    show_traceback,
    stream_seed,
)
from viz import figures
from viz.dashboard import Dashboard


def make_optimizer(args, parameters, device):
    """Adam, or Adagrad as in Higgins et al. (2017) on dSprites; fused where torch supports it."""
    if args.optimizer == "adagrad":
        return torch.optim.Adagrad(parameters, lr=args.lr, fused=device.type == "cpu")
    return torch.optim.Adam(parameters, lr=args.lr, betas=(args.beta1, args.beta2), fused=True)


class Solver:
    """Trains or loads a beta-VAE. args: the flags of main.py."""

    def __init__(self, args):
        self.args, self.device = args, set_up_device(args.cuda, args.threads)
        self.folder = RunFolder(args)
        self.outputs, self.checkpoints = self.folder.outputs, self.folder.checkpoints
        self.dashboard = Dashboard(self.outputs, args.viz_name, args.viz_server, args.viz_port)
        try:
            self.open()
        except BaseException:
            self.folder.__exit__()  # otherwise, in a notebook, the error would keep the lock alive
            raise

    def open(self):
        """Loads the checkpoint and the data set, and builds the network and everything that trains it."""
        args, state = self.args, self.folder.load()
        args.image_size = MODELS[args.model].image_size
        self.data = return_data(args, self.device)
        self.distribution = args.dist or self.data.distribution
        keep_freed_memory()  # after the data set is loaded: preparing it may have taken much more memory
        self.order = Order(len(self.data), args.batch_size, args.seed, self.device)
        self.build()
        self.evaluator = Evaluator(self.net, self.data, args.seed)
        if args.metrics != "none":
            self.evaluator.check()
        for file in args.image or ():  # before the training, though they are drawn after it
            read_image(file, self.data.channels, args.image_size)
        if state:
            self.load(state)

    def build(self):
        """Builds network, optimiser, noise and log at iteration 0. Network, data order, noise and pictures each have their own seed."""
        args, self.iter = self.args, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(args.seed, "model"))
            self.net = MODELS[args.model](args.z_dim, self.data.channels)
        self.net.to(self.device, memory_format=torch.channels_last)
        self.optim = make_optimizer(args, self.net.parameters(), self.device)
        self.noise = torch.Generator(self.device).manual_seed(stream_seed(args.seed, "noise"))
        self.objective = objectives.bind(args, self.distribution)
        x, z = torch.zeros(1, self.data.channels, 64, 64), torch.zeros(1, args.z_dim)
        self.window = Window(self.step_terms(x, x, z, z, z, 1)[1], self.device)
        self.log = Log(self.outputs / "log.csv", ["iter", *self.window.columns])
        self.first_nonfinite = torch.tensor(0, device=self.device)  # first step with such a loss; 0: none

    def train(self):
        """Trains up to max_iter; returns the exit status: 0, or 128 + the number of the signal that stopped it."""
        args = self.args
        with self.folder, self.dashboard if args.viz_on else contextlib.nullcontext():
            if self.iter < args.max_iter:
                self.begin()
                stopped = self.loop()
                what = "finished" if self.iter == args.max_iter else "stopped"
                print(f"{what} at iteration {self.iter:,}; saved in {self.checkpoints.folder}")
                if stopped:  # even at the last iteration: the next call scores
                    return 128 + stopped
            else:
                print(
                    f"run {args.viz_name} is finished (iteration {self.iter:,}): --max_iter can be increased"
                )
                self.display()  # it may have been killed while drawing its last pictures
            self.evaluate()
        return 0

    def loop(self):
        """The training loop; returns the signal that stopped it, or None if it reached max_iter."""
        args = self.args
        with (
            StopSignals() as stop,
            progress(total=args.max_iter, initial=self.iter, unit="it", delay=0, leave=True) as bar,
        ):
            while self.iter < args.max_iter and not stop.received:
                if args.objective == "restart" and self.iter == args.restart_iter:
                    self.restart_encoder()
                self.iter += 1
                x = self.data.batch(self.next_indices())  # B, C, 64, 64
                self.training_step(x)
                bar.update()

                end = self.iter == args.max_iter
                if end or self.iter % args.gather_step == 0:
                    self.gather()
                    bar.set_postfix_str(self.window.text(), refresh=False)
                if end or self.iter % args.save_step == 0 or self.iter % Checkpoints.KEEP_EVERY == 0:
                    self.save()
                if end or self.iter % args.display_step == 0:
                    self.display()  # after saving, so that a failing picture loses nothing
            if self.saved_iter != self.iter:
                self.save()
        self.log.close()
        return stop.received

    def training_step(self, x):
        """One optimiser step on the objective for a batch of images x (B, C, H, W)."""
        args = self.args
        with torch.autocast(self.device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            x_recon, mu, logvar, z = self.net(x, self.noise)  # float32, whatever the precision inside
        loss, terms = self.step_terms(x, x_recon, mu, logvar, z, self.iter)
        for group in self.optim.param_groups:
            group["lr"] = objectives.learning_rate(self.iter, args.lr, args.lr_start_iter, args.lr_stop_iter)
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        self.window.add(terms)  # this and the next two lines stay on the device: nothing waits for it
        bad = (self.first_nonfinite == 0) & ~loss.isfinite()
        self.first_nonfinite = torch.where(bad, self.iter, self.first_nonfinite)

    def step_terms(self, x, x_recon, mu, logvar, z, step):
        """The loss of a step, and everything that is logged: the terms of the objective, and the mean of mu and sigma^2."""
        loss, terms = self.objective(x, x_recon, mu, logvar, z, step)
        return loss, {**terms, "mu": mu.mean(dim=0), "var": logvar.exp().mean(dim=0)}

    @torch.no_grad()
    def restart_encoder(self):
        """Reinitialises the encoder and the decoder's input weights of inactive latents, and clears the optimiser's state.

        The decoder keeps its axes and teaches them to the new encoder; inactive latents get a fresh start.
        """
        kld = torch.tensor([self.window.means()[f"kld_{j}"] for j in range(self.args.z_dim)])
        inactive = (kld < ACTIVE).to(self.device)  # z_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(self.args.seed, "restart"))
            fresh = MODELS[self.args.model](self.args.z_dim, self.data.channels).to(self.device)
        self.net.encoder.load_state_dict(fresh.encoder.state_dict())
        self.net.decoder[0].weight[:, inactive] = fresh.decoder[0].weight[:, inactive]  # features, z_dim
        self.optim.state.clear()
        tqdm.write(
            f"[{self.iter:,}] encoder restarted; {int(inactive.sum())} of {len(kld)} latents were inactive"
        )

    def next_indices(self):
        """Indices of the images of this iteration, (B,)."""
        return self.order.batch(self.iter)

    def gather(self):
        """Writes the averages over the window as a row of the log, and starts the next window."""
        self.stop_if_not_finite()
        self.window.close(self.log.append(self.iter, self.window.means().values()))
        self.dashboard.update(self.iter)

    def display(self):
        """Prints the current averages and draws the pictures; a failing picture does not stop training."""
        self.stop_if_not_finite()  # or there is nothing to draw
        tqdm.write(f"[{self.iter:,}] {self.window.text()} nats")
        try:
            if self.args.save_output:
                self.draw()
        except Exception as error:
            show_traceback(error)
            tqdm.write(
                f"could not draw pictures at {self.iter:,}, training continues: {type(error).__name__}: {first_line(error)}"
            )

    def stop_if_not_finite(self):
        """Raises UserError if a loss, a weight or an average of the optimiser is not finite. Waits for the device."""
        first = int(self.first_nonfinite)
        if first or not all_finite(self.net, self.optim):
            what = "loss is" if first else "weights or the optimiser's averages are"
            stay = f"the checkpoints from before are kept in {self.checkpoints.folder}; "
            raise UserError(
                f"the {what} not finite since iteration {first or self.iter:,}: stopped; "
                f"{stay if self.checkpoints.paths() else ''}a lower --lr may help"
            )

    # Pictures and scores.

    def draw(self):
        """Writes the pictures of this iteration. Uses none of training's random numbers, so it does not affect training."""
        folder = self.outputs / str(self.iter)
        top_factor = self.evaluator.draw(folder, self.latent_kld())
        if self.log.path.exists():
            figures.curves(self.log.path, self.outputs / "curves.png")
            restarted = [self.args.restart_iter] if self.args.objective == "restart" else []
            figures.capacity(self.log.path, top_factor, self.outputs / "capacity.png", self.iter, restarted)
        if self.iter >= self.args.max_iter or not self.args.train:
            self.evaluator.write_page(folder / "explore.html", self.args.viz_name, self.latent_kld())
        tqdm.write(f"pictures in {folder}")
        self.dashboard.update(self.iter)

    def latent_kld(self):
        """KL of each latent in nats, as in the log; None before the first step."""
        means = self.window.means()
        return [means[f"kld_{j}"] for j in range(self.args.z_dim)] if means else None

    def evaluate(self):
        """Scores the model according to --metrics, and draws its pictures."""
        args, folder = self.args, self.outputs / str(self.iter)
        if args.metrics != "none":
            about = {"iter": self.iter, "commit": git_commit(), **machine(self.device, args.precision)}
            self.evaluator.score(args.metrics, folder, about, self.latent_kld(), draw=args.save_output)
            self.dashboard.update(self.iter)
        if args.save_output and not args.train:
            self.draw()
        if args.encode:
            self.evaluator.encode(args.encode)
        if args.image:
            self.evaluator.draw_files(args.image, folder, self.latent_kld())

    # Saving and loading.

    def begin(self):
        """Prepares the folders and the log, and prints what is starting, on which machine and where it writes."""
        args = self.args
        self.saved_iter = self.iter
        self.folder.begin(
            self.iter, self.log, machine(self.device, args.precision), self.save, len(self.data)
        )
        if args.objective == "H":
            beta = objectives.normalised_beta(args.beta, args.z_dim, self.data.channels * args.image_size**2)
            print(
                f"beta {args.beta:g}, normalised by {args.z_dim} latents and the size of an image: {beta:.3g}"
            )
        self.dashboard.update(self.iter)
        if self.iter and self.iter % args.display_step == 0:  # it may have been killed while drawing
            self.display()

    def save(self):
        self.stop_if_not_finite()
        self.log.flush_to_disk()
        self.checkpoints.save(
            {
                "iter": self.iter,
                "win_states": {},
                "model_states": {"net": self.net.state_dict()},
                "optim_states": {"optim": self.optim.state_dict()},
                "generators": {"noise": self.noise.get_state()},
                "epoch": self.iter // self.order.batches,
                "position": self.iter % self.order.batches,
                "window": self.window.state_dict(),
                "data": self.data.fingerprint,
                "arguments": vars(self.args),
                **machine(self.device, self.args.precision),
            }
        )
        self.saved_iter = self.iter

    def load(self, state):
        """Resumes a run from state, on the CPU bit for bit. Raises a one-line UserError if it does not fit."""
        args = self.args
        self.folder.check_data(state.get("data"), self.data.fingerprint)
        try:
            self.net.load_state_dict(state["model_states"]["net"])
            if args.train:  # drawing and scoring need no optimiser
                load_optimizer(self.optim, state["optim_states"]["optim"])
            self.iter = state["iter"]
            if state["arguments"] is not None:
                self.window.load_state_dict(state["window"])
                load_noise(self.noise, state, stream_seed(args.seed, "noise", self.iter))
                if args.train:
                    compare_machines(state, machine(self.device, args.precision))
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"checkpoint {args.ckpt_name} does not fit --model {args.model} --z_dim {args.z_dim} --optimizer "
                f"{args.optimizer} for {self.data.channels} channels, or is damaged ({first_line(error)})"
            ) from error
        if not all_finite(self.net):
            raise UserError(f"checkpoint {args.ckpt_name} has weights that are not finite")
