"""One run: it builds the network or loads it, trains it, and says when to log, to save and to draw."""

import contextlib
import json

import torch
from tqdm import tqdm

import objectives
from dataset import return_data
from evaluation import metrics
from model import MODELS
from training.checkpoint import Checkpoints, load_noise, load_optimizer
from training.log import Log, Window, read_log
from training.run import RunFolder, StopSignals, compare_machines
from utils import (
    Order,
    UserError,
    all_finite,
    atomic_file,
    first_line,
    git_commit,
    keep_freed_memory,
    machine,
    progress,
    set_up_device,
    show_traceback,
    stream_seed,
)
from viz import figures, pictures
from viz.dashboard import Dashboard


def make_optimizer(args, parameters, device):
    """Adam, or Adagrad as in Higgins et al. (2017) on dSprites, in its fused form where torch has one."""
    if args.optimizer == "adagrad":
        return torch.optim.Adagrad(parameters, lr=args.lr, fused=device.type == "cpu")
    return torch.optim.Adam(parameters, lr=args.lr, betas=(args.beta1, args.beta2), fused=True)


class Solver:
    """Trains a beta-VAE, or loads one, as args (the flags of main.py) say."""

    def __init__(self, args):
        self.args, self.device = args, set_up_device(args.cuda, args.threads)
        self.folder = RunFolder(args)
        self.outputs, self.checkpoints = self.folder.outputs, self.folder.checkpoints
        self.dashboard = Dashboard(self.outputs, args.viz_name, args.viz_server, args.viz_port)
        try:
            self.open()
        except BaseException:
            self.folder.__exit__()  # in a notebook the error would keep the lock
            raise

    def open(self):
        """Reads the checkpoint and the images, and builds what is trained."""
        args, state = self.args, self.folder.load()
        args.image_size = MODELS[args.model].image_size
        self.data = return_data(args, self.device)
        self.distribution = args.dist or self.data.distribution
        keep_freed_memory()  # after the data set, which may have been made with much more
        self.order = Order(len(self.data), args.batch_size, args.seed, self.device)
        self.check_metrics()
        self.build()
        self.choose_pictures()
        if state:
            self.load(state)

    def build(self):
        """Network, optimiser, noise and log at iteration 0. Network, data order, noise and pictures have a seed each."""
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
        self.first_nonfinite = torch.tensor(0, device=self.device)  # the first step with such a loss; 0: none

    def train(self):
        """Trains up to max_iter; returns the exit status: 0, or 128 + the signal that told it to stop."""
        args = self.args
        with self.folder, self.dashboard if args.viz_on else contextlib.nullcontext():
            if self.iter < args.max_iter:
                self.begin()
                stopped = self.loop()
                what = "finished" if self.iter == args.max_iter else "stopped"
                print(f"{what} at iteration {self.iter:,}; saved in {self.checkpoints.folder}")
                if stopped:  # also in the last iteration: the next call scores
                    return 128 + stopped
            else:
                print(f"run {args.viz_name} is finished (iteration {self.iter:,}): --max_iter may be larger")
                self.display()  # it may have been killed amid its last pictures
            self.evaluate()
        return 0

    def loop(self):
        """The training loop; returns the signal that stopped it, None at max_iter."""
        args = self.args
        with (
            StopSignals() as stop,
            progress(total=args.max_iter, initial=self.iter, unit="it", delay=0, leave=True) as bar,
        ):
            while self.iter < args.max_iter and not stop.received:
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
                    self.display()  # after saving: a picture that fails costs nothing
            if self.saved_iter != self.iter:
                self.save()
        self.log.close()
        return stop.received

    def training_step(self, x):
        """One step of the optimiser on the objective of x, a batch of images (B, C, 64, 64)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.precision == "bf16"):
            x_recon, mu, logvar, z = self.net(x, self.noise)  # float32, whatever the precision inside
        loss, terms = self.step_terms(x, x_recon, mu, logvar, z, self.iter)
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        self.window.add(terms)  # on the device, as is the next line: nothing waits for it
        bad = (self.first_nonfinite == 0) & ~loss.isfinite()
        self.first_nonfinite = torch.where(bad, self.iter, self.first_nonfinite)

    def step_terms(self, x, x_recon, mu, logvar, z, step):
        """The loss of a step, and all that is logged of it: what the objective returns, and mean mu and variance."""
        loss, terms = self.objective(x, x_recon, mu, logvar, z, step)
        return loss, {**terms, "mu": mu.mean(dim=0), "var": logvar.exp().mean(dim=0)}

    def next_indices(self):
        """The images of this iteration, (B,)."""
        return self.order.batch(self.iter)

    def gather(self):
        """Writes the averages over the window as a row of the log, and opens the next window."""
        self.stop_if_not_finite()
        self.window.close(self.log.append(self.iter, self.window.means().values()))
        self.dashboard.update(self.iter)

    def display(self):
        """Prints and draws how far it is; a picture that fails does not end a training."""
        self.stop_if_not_finite()  # nothing to draw
        tqdm.write(f"[{self.iter:,}] {self.window.text()} nats")
        try:
            if self.args.save_output:
                self.draw()
        except Exception as error:
            show_traceback(error)
            tqdm.write(
                f"no pictures at {self.iter:,}, training goes on: {type(error).__name__}: {first_line(error)}"
            )

    def stop_if_not_finite(self):
        """Waits for the device; UserError if a loss, a weight or an average of the optimiser is not finite."""
        first = int(self.first_nonfinite)
        if first or not all_finite(self.net, self.optim):
            what = "loss is" if first else "weights or the optimiser's averages are"
            stay = f"the checkpoints from before stay in {self.checkpoints.folder}; "
            raise UserError(
                f"the {what} not finite since iteration {first or self.iter:,}: stopped; "
                f"{stay if self.checkpoints.paths() else ''}a lower --lr may help"
            )

    # Pictures and scores.

    def choose_pictures(self):
        """Chooses, from the seed, what the pictures of all iterations show."""
        generator = torch.Generator().manual_seed(stream_seed(self.args.seed, "pictures"))
        indices = torch.randint(len(self.data), (21,), generator=generator)
        self.seed_images = {**self.data.seed_images, "image": int(indices[0])}
        self.reconstructed = indices[1:]
        self.seed_z = torch.randn(self.args.z_dim, generator=generator)

    def draw(self, information=None):
        """Writes the pictures of this iteration. Takes no random numbers: training cannot notice.

        information: what latents tell of factors, (z_dim, K) nats; without it, a glance at few images.
        """
        folder = self.outputs / str(self.iter)
        folder.mkdir(parents=True, exist_ok=True)
        kld, told = self.latent_kld(), None
        if self.data.factor_sizes:
            information = self.glance() if information is None else information
            told = pictures.tells(information, self.data.factor_names)
        for name, (seed, z) in self.seeds().items():
            images = pictures.traverse(self.net.decode, z)
            pictures.traversal(images, kld, told, folder / f"traverse_{name}.png", seed)
            pictures.animation(images, kld, told, folder / f"traverse_{name}.gif")
        x = self.data.batch(self.reconstructed)
        with torch.no_grad():
            mu, _ = self.net.encode(x)
            pictures.reconstruction(x, self.net.decode(mu), folder / "reconstruction.png")
        pictures.factors(self.net.decode, mu[:5], kld, told, folder / "factors.png")
        if self.log.path.exists() and read_log(self.log.path)["iter"]:
            figures.curves(self.log.path, self.outputs / "curves.png")
            figures.capacity(self.log.path, told, self.outputs / "capacity.png", self.iter)
        tqdm.write(f"pictures in {folder}")
        self.dashboard.update(self.iter, folder)

    def latent_kld(self):
        """KL of each latent in nats, as the log has it; without one, of a thousand images."""
        if means := self.window.means():
            return [means[f"kld_{j}"] for j in range(self.args.z_dim)]
        images = torch.linspace(0, len(self.data) - 1, 1000).long()
        return metrics.mean_kl(*metrics.encode_all(self.net, self.data, images)).tolist()

    @torch.no_grad()
    def seeds(self):
        """{name: (image, z)} where traversals start: seed images and their means, and a random z without an image."""
        x = self.data.batch(torch.tensor(list(self.seed_images.values())))
        mu, _ = self.net.encode(x)
        return {**dict(zip(self.seed_images, zip(x, mu))), "random": (None, self.seed_z.to(self.device))}

    def glance(self):
        """Mutual information of latents and factors, (z_dim, K), from a thousand images: enough for a name."""
        indices, factors = metrics.subgrid(self.data.factor_sizes, "glance")
        mu, _ = metrics.encode_all(self.net, self.data, indices)
        # 20 would show too much where there is little
        return metrics.mutual_information(mu, factors, bins=10)

    def check_metrics(self):
        """Before anything is trained: can the model be scored as --metrics asks?"""
        args = self.args
        if args.metrics != "none" and not self.data.factor_sizes:
            raise UserError(
                f"--metrics {args.metrics} needs a data set with known factors, which {args.dataset} "
                "has not: use --metrics none"
            )
        if args.metrics != "none" and args.z_dim < 2:
            raise UserError(f"--metrics {args.metrics} needs at least 2 latents: use --metrics none")

    def evaluate(self):
        """Scores the model as --metrics says: a table, metrics.json, and the pictures that need the same codes."""
        level, sizes = self.args.metrics, self.data.factor_sizes
        if level == "none":
            return None if self.args.train else self.draw()
        folder = self.outputs / str(self.iter)
        folder.mkdir(parents=True, exist_ok=True)
        indices, factors = metrics.subgrid(sizes, level)
        mu, logvar = metrics.encode_all(self.net, self.data, indices)  # N, z_dim
        scores = metrics.score(mu, logvar, factors, level)
        scores["settings"].update(
            iter=self.iter, commit=git_commit(), **machine(self.device, self.args.precision)
        )
        with atomic_file(folder / "metrics.json") as file:
            file.write(json.dumps(scores, indent=2).encode())
        self.dashboard.update(self.iter)
        print(
            f"{metrics.table(scores)}\n{self.args.viz_name}, iteration {self.iter:,}: {len(mu):,} images, "
            f"settings in {folder / 'metrics.json'}"
        )
        if self.args.save_output:
            self.draw_responses(mu, factors, folder)

    def draw_responses(self, mu, factors, folder):
        """Writes the pictures that need the codes mu (N, z_dim) of a grid of factors (N, K), and all others."""
        kld, names = self.latent_kld(), self.data.factor_names
        information = metrics.mutual_information(mu, factors)  # of all codes: hardly biased
        figures.mutual_information(
            information, metrics.entropy(factors), names, kld, folder / "mutual_information.png"
        )
        grid = mu.numpy().reshape(*metrics.grid_sizes(factors), -1)
        images = pictures.traverse(self.net.decode, self.seeds()["heart"][1])
        figures.latent_response(
            grid, images, kld, pictures.tells(information, names), folder / "latent_response.png"
        )
        self.draw(information)

    # Saving and loading.

    def begin(self):
        """Opens the folders and the log, and prints what starts, on what and where."""
        args = self.args
        self.saved_iter = self.iter
        self.folder.begin(
            self.iter, self.log, machine(self.device, args.precision), self.save, len(self.data)
        )
        if args.objective == "H":
            beta = objectives.normalised_beta(args.beta, args.z_dim, self.data.channels * args.image_size**2)
            print(
                f"beta {args.beta:g}: normalised, by {args.z_dim} latents and the size of an image, {beta:.3g}"
            )
        self.dashboard.update(self.iter)
        if self.iter and self.iter % args.display_step == 0:  # it may have been killed amid the pictures
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
        """Takes up a run where state left it: on the CPU, to the bit. UserError, in one line, if it does not fit."""
        args = self.args
        self.folder.check_data(state.get("data"), self.data.fingerprint)
        try:
            self.net.load_state_dict(state["model_states"]["net"])
            if args.train:  # weights without an optimiser can be looked at
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
