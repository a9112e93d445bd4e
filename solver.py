"""One run: builds or loads the network, trains it, and decides when to log, save and draw."""

import contextlib

import torch
from tqdm import tqdm

import objectives
from dataset import Batches, return_data
from evaluation.evaluator import Evaluator, read_image
from model import MODELS, build_net
from optimizers import make_optimizer
from training.checkpoint import Checkpoints, load_noise, load_optimizer
from training.log import Log, Window, read_log
from training.machine import keep_freed_memory, machine, set_up_device
from training.run import RunFolder, StopSignals
from utils import UserError, first_line, progress, show_traceback, stream_seed
from viz import figures
from viz.dashboard import Dashboard


class Solver:
    """Trains or loads a beta-VAE. args: the flags of main.py."""

    def __init__(self, args):
        self.args, self.device = args, set_up_device(args.cuda, args.threads)
        self.machine = machine(self.device, args.precision)
        self.folder = RunFolder(args, self.machine)  # locked until train() ends
        self.outputs, self.checkpoints = self.folder.outputs, self.folder.checkpoints
        try:
            self.dashboard = Dashboard(self.outputs, args.viz_name, args.viz_server, args.viz_port)
            state = self.folder.load()
            self.build()
            if state:
                self.load(state)
        except BaseException:
            self.folder.release()  # otherwise, in a notebook, the error would keep the lock alive
            raise

    def build(self):
        """Builds all that trains at iteration 0. Network, data order, noise and pictures each have their own seed."""
        args, self.iter = self.args, 0
        args.image_size = MODELS[args.model].image_size
        self.data = return_data(args, self.device)
        keep_freed_memory()  # only now: preparing the data may have taken much more memory than training does
        self.batches = Batches(len(self.data), args.batch_size, args.seed, self.device)
        net = build_net(args.model, args.z_dim, self.data.channels, stream_seed(args.seed, "model"))
        self.net = net.to(self.device, memory_format=torch.channels_last)
        self.optim = make_optimizer(args, self.net.parameters(), self.device)
        self.distribution = args.dist or self.data.distribution
        self.objective = objectives.bind(args, self.distribution)
        self.noise = torch.Generator(self.device)
        with torch.no_grad():
            # A first loss, only to see what a step logs; of two images, since an objective may need a covariance.
            _, terms = self.compute_loss(self.data.batch(torch.tensor([0, 0])))
        self.noise.manual_seed(stream_seed(args.seed, "noise"))
        self.window = Window(terms, self.device)
        self.log = Log(self.outputs / "log.csv", ["iter", *self.window.columns])
        self.first_nonfinite = torch.tensor(0, device=self.device)  # first step with such a loss; 0: none
        self.evaluator = Evaluator(self.net, self.data, args.seed)
        if args.metrics != "none":
            self.evaluator.check()
        for file in args.image or ():  # drawn at the end; one that is missing is found now
            read_image(file, self.data.channels, args.image_size)

    def train(self):
        """Trains up to max_iter; returns the exit status: 0, or 128 + the number of the signal that stopped it."""
        args = self.args
        with self.folder, self.dashboard if args.viz_on else contextlib.nullcontext():
            if self.iter >= args.max_iter:
                print(f"{args.viz_name} is finished (iteration {self.iter:,}): --max_iter can be increased")
                self.display()  # it may have been killed while drawing its last pictures
            else:
                self.folder.begin(self.iter, self.log, self.save)
                self.dashboard.update(self.iter)
                if self.iter and self.iter % args.display_step == 0:  # killed while drawing
                    self.display()
                if stopped := self.loop():  # even in the last iteration: the next call scores
                    return 128 + stopped
            self.evaluate()
        return 0

    def loop(self):
        """The training loop; returns the signal that stopped it, or None if it reached max_iter."""
        args, saved = self.args, self.iter
        bar = progress(total=args.max_iter, initial=self.iter, unit="it", delay=0, leave=True)
        with StopSignals() as stop, bar:
            while self.iter < args.max_iter and not stop.received:
                self.iter += 1
                x = self.data.batch(self.batches[self.iter])  # B, C, H, W
                self.training_step(x)
                bar.update()

                end = self.iter == args.max_iter
                if end or self.iter % args.gather_step == 0:
                    self.gather()
                    bar.set_postfix_str(self.window.text(), refresh=False)
                if end or self.iter % args.save_step == 0 or self.iter % Checkpoints.KEEP_EVERY == 0:
                    self.save()
                    saved = self.iter
                if end or self.iter % args.display_step == 0:
                    self.display()  # after saving, so that a failing picture loses nothing
            if saved != self.iter:
                self.save()
        what = "finished" if self.iter == args.max_iter else "stopped"
        print(f"{what} at iteration {self.iter:,}; saved in {self.checkpoints.folder}")
        return stop.received

    def training_step(self, x):
        """One optimiser step on a batch of images x (B, C, H, W). Nothing in it waits for the device."""
        args = self.args
        for group in self.optim.param_groups:
            group["lr"] = objectives.learning_rate(self.iter, args.lr, args.lr_start_iter, args.lr_stop_iter)
        loss, terms = self.compute_loss(x)
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        self.window.add(terms)
        bad = (self.first_nonfinite == 0) & ~loss.isfinite()
        self.first_nonfinite = torch.where(bad, self.iter, self.first_nonfinite)

    def compute_loss(self, x):
        """The objective for images x (B, C, H, W), a scalar, and a dict of what is logged: its terms, mean mu and sigma^2."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.precision == "bf16"):
            x_recon, mu, logvar, z = self.net(x, self.noise)  # float32, whatever the precision inside
        loss, terms = self.objective(x, x_recon, mu, logvar, z, self.iter)
        return loss, {**terms, "mu": mu.mean(dim=0), "var": logvar.exp().mean(dim=0)}

    def check_finite(self):
        """Raises UserError if a loss, a weight or an average of the optimiser is not finite. Waits for the device."""
        first = int(self.first_nonfinite)
        averages = [each for state in self.optim.state.values() for each in state.values()]
        values = map(torch.as_tensor, [*self.net.parameters(), *averages])
        if first or not all(value.isfinite().all() for value in values):
            what = "loss is" if first else "weights or the optimiser's averages are"
            since = f"since iteration {first or self.iter:,}"
            raise UserError(f"the {what} not finite {since}: stopped without saving; a lower --lr may help")

    # Log, pictures and scores.

    def gather(self):
        """Writes the averages over the window as a row of the log, and starts the next window."""
        self.check_finite()
        self.window.close(self.log.append(self.iter, self.window.means().values()))
        self.dashboard.update(self.iter)

    def display(self):
        """Prints the current averages and draws the pictures; a failing picture does not stop training."""
        self.check_finite()  # or there is nothing to draw
        tqdm.write(f"[{self.iter:,}] {self.window.text()} nats")
        try:
            if self.args.save_output:
                self.draw()
        except Exception as error:
            show_traceback(error)
            tqdm.write(
                f"no pictures at {self.iter:,}, training continues: {type(error).__name__}: {first_line(error)}"
            )

    def draw(self):
        """Writes the pictures of this iteration. Uses none of training's random numbers, so it does not affect training."""
        folder = self.outputs / str(self.iter)
        latents = self.evaluator.describe(self.window.latent_kld())
        self.evaluator.draw(folder, latents)
        if (path := self.log.path).exists():
            log = read_log(path)
            figures.curves(log, self.outputs / "curves.png")
            figures.capacity(log, latents, self.outputs / "capacity.png", self.iter)
        if self.iter >= self.args.max_iter or not self.args.train:
            title = f"{self.args.viz_name}, iteration {self.iter:,}"
            self.evaluator.write_page(folder / "explore.html", title, latents)
        tqdm.write(f"pictures in {folder}")
        self.dashboard.update(self.iter)

    def evaluate(self):
        """Scores the model according to --metrics, and draws its pictures."""
        args, folder = self.args, self.outputs / str(self.iter)
        if args.metrics != "none":
            about = {"iter": self.iter, **self.machine}
            latents = self.evaluator.describe(self.window.latent_kld())
            self.evaluator.score(args.metrics, folder, about, latents, draw=args.save_output)
            self.dashboard.update(self.iter)
        if args.save_output and not args.train:
            self.draw()
        if args.encode:
            self.evaluator.encode(args.encode)
        if args.image:
            self.evaluator.draw_files(args.image, folder, self.evaluator.describe(self.window.latent_kld()))

    # Checkpoints.

    def save(self):
        self.check_finite()
        self.log.flush_to_disk()
        self.checkpoints.save(
            {
                "iter": self.iter,
                "model_states": {"net": self.net.state_dict()},
                "optim_states": {"optim": self.optim.state_dict()},
                "generators": {"noise": self.noise.get_state()},
                "window": self.window.state_dict(),
                "data": self.data.fingerprint,
                "arguments": vars(self.args),
                **self.machine,
            }
        )

    def load(self, state):
        """Resumes a run from state, on the CPU bit for bit. Raises a one-line UserError if it does not fit."""
        args = self.args
        self.folder.check_data(state.get("data"), self.data.fingerprint)
        try:
            self.net.load_state_dict(state["model_states"]["net"])
            self.iter = state["iter"]
            if args.train:  # drawing and scoring need no optimiser
                load_optimizer(self.optim, state["optim_states"]["optim"])
            if state["arguments"] is not None:
                self.window.load_state_dict(state["window"])
                load_noise(self.noise, state, stream_seed(args.seed, "noise", self.iter))
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            network = f"--model {args.model} --z_dim {args.z_dim} for {self.data.channels} channels"
            what = f"does not fit {network}, or --optimizer {args.optimizer} ({first_line(error)})"
            raise UserError(f"checkpoint {args.ckpt_name} {what}") from error
        self.check_finite()
