"""Build or load the network, train it, and decide when to log, save and draw."""

import contextlib
import traceback

import torch
from tqdm import tqdm

from dataset import Batches, return_data
from evaluation.evaluator import Evaluator
from model import MODELS, build_net
from objectives import OBJECTIVES, scheduled
from optimizers import OPTIMIZERS
from run.checkpoint import Checkpoints, load_noise, load_optimizers, read_checkpoint
from run.folder import RunFolder
from run.log import Log, Window, read_log
from run.machine import keep_freed_memory, machine, set_up_device
from utils import StopSignal, UserError, bind, first_line, handle_signals, progress, stream_seed
from viz import figures
from viz.dashboard import Dashboard


class Solver:
    """Trains or loads a beta-VAE. args: the flags of main.py."""

    def __init__(self, args):
        self.args, self.device = args, set_up_device(args.cuda, args.threads)
        self.machine = machine(self.device, args.precision)
        self.folder = RunFolder(args, self.machine)
        self.outputs, self.checkpoints = self.folder.outputs, self.folder.checkpoints
        with contextlib.ExitStack() as locked:
            locked.enter_context(self.folder)
            state = self.folder.load()
            self.build(new=not state)
            if state:
                self.load(state)
            self.locked = locked.pop_all()  # no error: the lock is held until train() ends

    def build(self, new):
        """Build all that trains, at iteration 0. Network, data order, noise and pictures each have their own seed."""
        args, self.iter = self.args, 0
        args.image_size = MODELS[args.model].image_size  # the model may be the checkpoint's
        self.data = return_data(args, self.device)
        keep_freed_memory()  # only now: preparing the data may have taken much more memory than training does
        net = build_net(args.model, args.z_dim, self.data.channels, stream_seed(args.seed, "model"))
        if args.init and new:
            self.load_weights(net, read_checkpoint(args.init))
        self.net = net.to(self.device, memory_format=torch.channels_last)
        self.evaluator = Evaluator(self.net, self.data, args.seed)
        self.evaluator.check(args.metrics, args.image or ())
        self.window, self.log = Window(), Log(self.outputs / "log.csv")
        self.dashboard = Dashboard(self.outputs, args.viz_name, args.viz_server, args.viz_port)
        self.noise = torch.Generator(self.device).manual_seed(stream_seed(args.seed, "noise"))
        if args.train:
            self.batches = Batches(len(self.data), args.batch_size, args.seed, self.device)
            self.optims = bind(OPTIMIZERS[args.optimizer], args)(self.net)
            self.objective = bind(OBJECTIVES[args.objective], args)
            self.first_nonfinite = torch.tensor(0, device=self.device)  # first step with such a loss; 0: none

    def train(self):
        """Train up to max_iter; return the exit status: 0, or 128 + the number of the signal that stopped it."""
        args = self.args
        with self.locked, self.dashboard if args.viz_on else contextlib.nullcontext():
            if self.iter >= args.max_iter:
                print(f"{args.viz_name} is finished (iteration {self.iter:,}): --max_iter can be increased")
                self.display()  # it may have been killed while drawing its last pictures
            else:
                self.folder.begin(self.iter, self.log)
                self.dashboard.update()
                if self.iter and self.iter % args.display_step == 0:  # killed while drawing
                    self.display()
                if stopped := self.loop():  # even in the last iteration: the next call scores
                    return 128 + stopped
            self.evaluate()
        return 0

    def loop(self):
        """Run the training loop; return the signal that stopped it, or None if it reached max_iter."""
        args, saved, stop = self.args, self.iter, StopSignal()
        bar = progress(total=args.max_iter, initial=self.iter, unit="it", delay=0, leave=True)
        with handle_signals(stop), bar:
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
        """Take one optimiser step on a batch of images x (B, C, H, W). Nothing in it waits for the device."""
        lr = scheduled(self.args.lr, self.iter)
        loss, terms = self.compute_loss(x)
        self.net.zero_grad()
        loss.backward()
        for optim in self.optims.values():
            for group in optim.param_groups:
                group["lr"] = lr
            optim.step()
        self.window.add(terms, self.device)
        bad = (self.first_nonfinite == 0) & ~loss.isfinite()
        self.first_nonfinite = torch.where(bad, self.iter, self.first_nonfinite)

    def compute_loss(self, x):
        """Compute the objective for images x (B, C, H, W), a scalar, and a dict to log: its terms, mean mu and sigma^2."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.precision == "bf16"):
            x_recon, mu, logvar, z = self.net(x, self.noise)  # float32, whatever the precision inside
        loss, terms = self.objective(x, x_recon, mu, logvar, z, self.iter)
        return loss, {**terms, "mu": mu.mean(dim=0), "var": logvar.exp().mean(dim=0)}

    def check_finite(self):
        """Raise UserError if a loss, a weight or an average of the optimiser is not finite. Waits for the device."""
        first = int(self.first_nonfinite)
        states = [state for optim in self.optims.values() for state in optim.state.values()]
        averages = [torch.as_tensor(value) for state in states for value in state.values()]
        if first or not all(value.isfinite().all() for value in (*self.net.parameters(), *averages)):
            what = "loss is" if first else "weights or the optimiser's averages are"
            since = f"since iteration {first or self.iter:,}"
            raise UserError(f"the {what} not finite {since}: stopped without saving; a lower --lr may help")

    # Log, pictures and scores.

    def gather(self):
        """Write the averages over the window as a row of the log, and start the next window."""
        self.check_finite()
        self.window.close(self.log.append(self.iter, self.window.means()))
        self.dashboard.update()

    def display(self):
        """Print the current averages and draw the pictures; a failing picture does not stop training."""
        self.check_finite()  # or there is nothing to draw
        tqdm.write(f"[{self.iter:,}] {self.window.text()} nats")
        if self.args.save_output:
            self.draw()

    def draw(self, latents=None):
        """Write the pictures of this iteration. Uses none of training's random numbers, so it does not affect training."""
        folder, log = self.outputs / str(self.iter), self.log.path
        try:
            latents = latents or self.evaluator.describe()
            self.evaluator.draw(folder, latents)
            if log.exists():
                columns = read_log(log)
                figures.curves(columns, self.outputs / "curves.png")
                figures.capacity(columns, latents, self.outputs / "capacity.png", self.iter)
            if self.iter >= self.args.max_iter or not self.args.train:
                title = f"{self.args.viz_name}, iteration {self.iter:,}"
                self.evaluator.write_page(folder / "explore.html", title, latents)
            tqdm.write(f"pictures in {folder}")
        except Exception as error:
            if not self.args.train and isinstance(error, OSError):
                raise  # nothing can be written
            if not isinstance(error, (UserError, OSError)):
                traceback.print_exc()
            tqdm.write(f"pictures at {self.iter:,}: {first_line(error)}; all else goes on")
        self.dashboard.update()

    def evaluate(self):
        """Score the model according to --metrics, and draw its pictures."""
        args, folder = self.args, self.outputs / str(self.iter)
        scored, drawn = args.metrics != "none", args.save_output and not args.train
        latents = self.evaluator.describe() if scored or drawn or args.image else None
        if scored:
            about = {"iter": self.iter, **self.machine}
            self.evaluator.score(args.metrics, folder, about, latents, draw=args.save_output)
            self.dashboard.update()
        if drawn:
            self.draw(latents)
        if args.encode:
            self.evaluator.encode(args.encode)
        if args.image:
            self.evaluator.draw_files(args.image, folder, latents)

    # Checkpoints.

    def save(self):
        self.check_finite()
        self.checkpoints.save(
            {
                "iter": self.iter,
                "model_states": {"net": self.net.state_dict()},
                "optim_states": {name: optim.state_dict() for name, optim in self.optims.items()},
                "generators": {"noise": self.noise.get_state()},
                "window": self.window.state_dict(),
                "data": self.data.fingerprint,
                "arguments": vars(self.args),
                **self.machine,
            }
        )

    def load(self, state):
        """Resume a run from state, on the CPU bit for bit. Drawing and scoring need neither its optimiser nor its images."""
        self.folder.check_data(state.get("data"), self.data.fingerprint)
        self.load_weights(self.net, state)
        self.iter = state["iter"]
        if self.args.train:
            load_optimizers(self.optims, state["optim_states"])
        if state["arguments"] is not None:
            self.window.load_state_dict(state["window"], self.device)
            load_noise(self.noise, state, stream_seed(self.args.seed, "noise", self.iter))

    def load_weights(self, net, state):
        """Load the weights of a checkpoint; UserError if they are of another network."""
        args = self.args
        try:
            net.load_state_dict(state["model_states"]["net"])
        except RuntimeError as error:  # other names or shapes
            network = f"--model {args.model} --z_dim {args.z_dim} for {self.data.channels} channels"
            raise UserError(
                f"the checkpoint's weights do not fit {network}: {str(error).splitlines()[1].strip()}"
            ) from None
