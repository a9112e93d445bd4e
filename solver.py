"""One run: the objectives of both papers, the training loop, checkpoints, and when to draw."""

import json
import math
import os
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from dataset import return_data
from evaluation import metrics
from model import MODELS
from training.checkpoint import Checkpoints
from training.lock import take_folder
from training.log import Log
from training.run import StopSignals
from training.settings import defining_flags, fault_of_flags, saved_flags
from utils import (
    ACTIVE,
    UserError,
    atomic_file,
    epoch_order,
    find_device,
    git_commit,
    keep_freed_memory,
    progress,
    stream_seed,
    versions,
)
from viz import figures, pictures
from viz.dashboard import Dashboard

# The objective. All terms are in nats: summed over pixels or latents, averaged over the batch.


def reconstruction_loss(x, x_recon, distribution):
    """-E_q[log p(x|z)], up to a constant, from one sample of z; a scalar in nats an image.

    x: images in [0, 1] (B, C, H, W); x_recon: logits of p(x|z), as x.
    bernoulli: binary cross-entropy of each pixel.
    gaussian: squared error of the mean sigmoid(x_recon), which is a Gaussian of variance 1/2.
    """
    if distribution == "bernoulli":
        loss = F.binary_cross_entropy_with_logits(x_recon, x, reduction="sum")
    elif distribution == "gaussian":
        loss = F.mse_loss(torch.sigmoid(x_recon), x, reduction="sum")
    else:
        raise ValueError(f"distribution {distribution!r} is neither bernoulli nor gaussian")
    return loss / len(x)


def kl_divergence(mu, logvar):
    """KL(q(z|x) || N(0, I)) of diagonal Gaussians (Kingma & Welling, 2014, Appendix B), in nats.

    mu, logvar: (B, z_dim). Returns, averaged over the batch: total over latents (scalar), that of
    each latent (z_dim,), and their mean (scalar).
    """
    per_latent = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).mean(dim=0)  # z_dim
    return per_latent.sum(), per_latent, per_latent.mean()


def objective_H(recon_loss, total_kld, beta):
    """Higgins et al. (2017), eq. 4, negated: to be minimised."""
    return recon_loss + beta * total_kld


def objective_B(recon_loss, total_kld, gamma, C, delta=0.0):
    """Burgess et al. (2018), eq. 8, negated: to be minimised. |KL - C| is taken of the batch mean.

    delta: nats within which the bars are rounded off, |d| -> sqrt(d^2 + delta^2) - delta (pseudo-Huber); 0 is the
    paper's. Unrounded, their slope jumps between -gamma and gamma from step to step: noise that fills Adam's second
    moment, so that the encoder hardly hears the reconstruction (README, "Capacity").
    """
    distance = total_kld - C
    bars = (distance**2 + delta**2).sqrt() - delta if delta else distance.abs()
    return recon_loss + gamma * bars


def total_correlation(z, mu, logvar):
    """KL(q(z) || prod_j q(z_j)) of the batch's aggregate posterior, in nats (Chen et al., 2018, eq. 2).

    z, mu, logvar: (B, z_dim), z one sample of each posterior; q(z) is the mean of the batch's B posteriors. With so few of them
    the estimate is far too high, but by what hardly depends on the weights: its gradient is that of Chen et al., eq. S6.
    """
    log_q = -0.5 * (
        math.log(2 * math.pi) + logvar + (z[:, None] - mu) ** 2 / logvar.exp()
    )  # B of z, B of q, z_dim
    log_B = math.log(len(z))
    return ((log_q.sum(2).logsumexp(1) - log_B) - (log_q.logsumexp(1) - log_B).sum(1)).mean()


def objective_TC(recon_loss, total_kld, tc, beta, alpha=1.0):
    """Chen et al. (2018), eq. 4, negated: beta weighs the total correlation, alpha the rest of the KL (1 in the paper)."""
    return recon_loss + alpha * total_kld + (beta - alpha) * tc


def restart_weights(step, restart_iter, restart_beta, weak_iters, rise_iters, beta):
    """alpha and beta of objective_TC after the restart: both restart_beta for weak_iters, then up to 1 and beta."""
    rise = min(1, max(0, step - restart_iter - weak_iters) / rise_iters)
    return restart_beta ** (1 - rise), restart_beta + (beta - restart_beta) * rise


def learning_rate(step, lr, start, stop):
    """lr up to start, then half a cosine down to lr / 100 at stop; stop 0: constant."""
    rest = min(1, max(0, step - start) / (stop - start)) if stop else 0
    return lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * rest)))


def normalised_beta(beta, z_dim, pixels):
    """beta * M / N of M latents and N values of an image (Higgins et al., 2017, Appendix A.6): compares data sets."""
    return beta * z_dim / pixels


def capacity(step, C_max, C_stop_iter, C_start=0.0):
    """C in nats at a step: from C_start, 0 in the paper, to C_max in a straight line, there at C_stop_iter (Appendix A.2)."""
    return C_start + (C_max - C_start) * step / C_stop_iter if step < C_stop_iter else C_max


# A run.

NEVER = 2**62  # stands for the iteration of a bad loss while there was none


def make_optimizer(args, parameters, device):
    """Adam, or Adagrad as in Higgins et al. (2017) on dSprites, in its fused form where torch has one."""
    if args.optimizer == "adagrad":
        return torch.optim.Adagrad(parameters, lr=args.lr, fused=device.type == "cpu")
    return torch.optim.Adam(parameters, lr=args.lr, betas=(args.beta1, args.beta2), fused=True)


class Solver:
    """Trains a beta-VAE, or loads one, as args (the flags of main.py) say."""

    def __init__(self, args):
        self.args = args
        self.device = find_device(args.cuda)
        torch.set_flush_denormal(
            True
        )  # late in a run 2 % of the gradient is denormal, on which CPUs are slow
        if args.threads:
            torch.set_num_threads(args.threads)
        if self.device.type == "cuda":  # TensorFloat-32: products of 10-bit mantissas, sums in float32
            torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"
        self.checkpoints = Checkpoints(Path(args.ckpt_dir) / args.viz_name)
        self.outputs = Path(args.output_dir) / args.viz_name
        folders = (self.checkpoints.folder, self.outputs) if args.train else ()
        self.locks = [take_folder(folder) for folder in folders]  # before anything of another run is read
        self.dashboard = Dashboard(self.outputs, args.viz_name, args.viz_server, args.viz_port)
        state = self.find_checkpoint()

        self.data = return_data(args, self.device)
        self.distribution = args.dist or self.data.distribution
        keep_freed_memory()  # after the data set, which may have been made with much more
        self.batches_per_epoch = len(self.data) // args.batch_size
        if not self.batches_per_epoch:
            raise UserError(f"{len(self.data)} images are fewer than one batch of {args.batch_size}")
        self.check_metrics()
        self.epoch = None

        # Model, data order, noise and pictures each have a stream of random numbers of their own.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(args.seed, "model"))
            self.net = MODELS[args.model](args.z_dim, self.data.channels)
        self.net.to(self.device, memory_format=torch.channels_last)
        self.optim = make_optimizer(args, self.net.parameters(), self.device)
        self.noise = torch.Generator(self.device).manual_seed(stream_seed(args.seed, "noise"))
        self.choose_pictures()

        self.iter = 0
        latents = [f"{name}_{j}" for name in ("kld", "mu", "var") for j in range(args.z_dim)]
        self.log = Log(
            self.outputs / "log.csv", ["iter", "recon_loss", "total_kld", "mean_kld", "C", *latents]
        )
        # Sums over the open window of the log, on the device: reading them would wait for it.
        self.sums = torch.zeros(4 + 3 * args.z_dim, dtype=torch.float64, device=self.device)
        self.count = 0
        self.last_row = None
        self.first_bad = torch.tensor(NEVER, device=self.device)
        if state:
            self.load(state)

    def train(self):
        """Trains up to max_iter; returns the exit status: 0, or 130 or 143 if told to stop."""
        args = self.args
        if self.iter >= args.max_iter:
            print(
                f"run {args.viz_name} is finished (iteration {self.iter:,}): "
                "a larger --max_iter continues it, another --viz_name starts a new run"
            )
            self.evaluate()
            return 0
        self.prepare_outputs()
        with StopSignals() as stop, self.progress_bar() as bar:
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
                    bar.set_postfix_str(self.summary(), refresh=False)
                if end or self.iter % args.display_step == 0:
                    self.display()
                if end or self.iter % args.save_step == 0 or self.iter % Checkpoints.KEEP_EVERY == 0:
                    self.save()
            if self.saved_iter != self.iter:
                self.save()
        self.log.close()
        what = "finished" if self.iter == args.max_iter else "stopped"
        print(f"{what} at iteration {self.iter:,}; saved in {self.checkpoints.folder}")
        if stop.received:  # also in the last iteration: the next call scores
            return 128 + stop.received
        self.evaluate()
        return 0

    def training_step(self, x):
        """One step of the optimiser on the objective of x, a batch of images (B, C, 64, 64)."""
        args = self.args
        with torch.autocast(self.device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            x_recon, mu, logvar, z = self.net(x, self.noise)  # float32, whatever the precision inside
        recon_loss = reconstruction_loss(x, x_recon, self.distribution)
        total_kld, latent_kld, mean_kld = kl_divergence(mu, logvar)
        C = capacity(self.iter, args.C_max, args.C_stop_iter, args.C_start)
        if args.objective == "H":
            loss = objective_H(recon_loss, total_kld, args.beta)
        elif args.objective == "B" or args.objective == "restart" and self.iter <= args.restart_iter:
            loss = objective_B(recon_loss, total_kld, args.gamma, C, args.delta)
        else:
            alpha, beta = 1.0, args.beta
            if args.objective == "restart":
                alpha, beta = restart_weights(
                    self.iter,
                    args.restart_iter,
                    args.restart_beta,
                    args.weak_iters,
                    args.rise_iters,
                    args.beta,
                )
            loss = objective_TC(recon_loss, total_kld, total_correlation(z, mu, logvar), beta, alpha)
        for group in self.optim.param_groups:
            group["lr"] = learning_rate(self.iter, args.lr, args.lr_start_iter, args.lr_stop_iter)

        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        self.accumulate(loss, recon_loss, total_kld, mean_kld, C, latent_kld, mu, logvar)

    @torch.no_grad()
    def restart_encoder(self):
        """Draws the encoder anew, the decoder's weights of inactive latents, and forgets the optimiser's averages.

        The decoder keeps its axes and teaches them to the new encoder; the latents that were not in use start afresh.
        """
        inactive = torch.tensor(self.latent_kld(), device=self.device) < ACTIVE  # z_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(self.args.seed, "restart"))
            fresh = MODELS[self.args.model](self.args.z_dim, self.data.channels)
        self.net.encoder.load_state_dict(fresh.encoder.state_dict())
        first = self.net.decoder[0].weight  # features, z_dim
        first[:, inactive] = fresh.decoder[0].weight.to(self.device)[:, inactive]
        self.optim.state.clear()
        tqdm.write(
            f"[{self.iter:,}] encoder restarted; {int(inactive.sum())} of {len(inactive)} latents were inactive"
        )

    @torch.no_grad()
    def accumulate(self, loss, recon_loss, total_kld, mean_kld, C, latent_kld, mu, logvar):
        """Adds a step to the window's sums and notes a loss that is not finite, all on the device."""
        scalars = torch.stack([recon_loss, total_kld, mean_kld, torch.full_like(recon_loss, C)])
        self.sums += torch.cat([scalars, latent_kld, mu.mean(dim=0), logvar.exp().mean(dim=0)])
        self.count += 1
        bad = torch.where(loss.isfinite(), NEVER, self.iter)
        self.first_bad = torch.minimum(self.first_bad, bad)

    def next_indices(self):
        """The images of this iteration; each epoch is a new permutation, less its last partial batch."""
        epoch, position = divmod(self.iter - 1, self.batches_per_epoch)
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = epoch_order(self.args.seed, epoch, len(self.data)).to(self.device)
        return self.order[position * self.args.batch_size :][: self.args.batch_size]

    # Looking at a run.

    def gather(self):
        """Writes the averages over the window as a row of the log, and opens the next window."""
        self.stop_if_not_finite()
        self.last_row = self.log.append(self.iter, self.window_means())
        self.sums.zero_()
        self.count = 0
        self.dashboard.update(self.iter)

    def window_means(self):
        """What a row of the log holds after iter: of the open window, or of the last one if it has just closed."""
        if not self.count:
            return self.last_row
        means = (self.sums / self.count).tolist()
        if self.args.objective == "H":
            means[3] = None  # no C
        return means

    def summary(self):
        recon_loss, total_kld, _, C = self.window_means()[:4]
        return f"recon {recon_loss:.1f} KL {total_kld:.2f}" + ("" if C is None else f" C {C:.2f}")

    def display(self):
        self.stop_if_not_finite()  # nothing to draw
        tqdm.write(f"[{self.iter:,}] {self.summary()} nats")
        if self.args.save_output:
            self.draw()

    def choose_pictures(self):
        """Chooses, from the seed, what the pictures of all iterations show."""
        generator = torch.Generator().manual_seed(stream_seed(self.args.seed, "pictures"))
        indices = torch.randint(len(self.data), (21,), generator=generator)
        self.seed_images = {**self.data.fixed_images, "image": int(indices[0])}
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
        if self.log.path.exists():
            figures.curves(self.log.path, self.outputs / "curves.png")
            figures.capacity(self.log.path, told, self.outputs / "capacity.png", self.iter)
        tqdm.write(f"pictures in {folder}")
        self.dashboard.update(self.iter, folder)

    def latent_kld(self):
        """KL of each latent in nats, as the log has it; without one, of a thousand images."""
        if means := self.window_means():
            return means[4:][: self.args.z_dim]
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
            return
        folder = self.outputs / str(self.iter)
        folder.mkdir(parents=True, exist_ok=True)
        indices, factors = metrics.subgrid(sizes, level)
        mu, logvar = metrics.encode_all(self.net, self.data, indices)  # N, z_dim
        scores = metrics.score(mu, logvar, factors, level)
        scores["settings"].update(iter=self.iter, commit=git_commit(), **self.environment())
        with atomic_file(folder / "metrics.json", shared=True) as file:
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

    def progress_bar(self):
        return progress(total=self.args.max_iter, initial=self.iter, unit="it", delay=0, leave=True)

    # Files of a run.

    def prepare_outputs(self):
        """Makes the folders and args.json; the log goes on after the checkpoint, or begins anew."""
        self.outputs.mkdir(parents=True, exist_ok=True)
        self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        own = self.own_until()
        goes_on = self.args.ckpt_name == "last" and self.iter > 0
        self.log.open(own, keep=not goes_on)
        if self.args.overwrite and self.args.ckpt_name != "last":
            if self.iter:
                self.save()
            self.checkpoints.forget_after(self.iter)
        if not goes_on:
            self.set_aside_results(own)
        environment = self.environment()
        about = {"arguments": vars(self.args), **environment, "commit": git_commit()}
        with atomic_file(self.outputs / "args.json") as file:
            file.write(json.dumps({**about, "before": self.earlier_sessions(own)}, indent=2).encode())
        self.saved_iter = self.iter
        self.announce(environment)
        self.dashboard.update(self.iter)

    def own_until(self):
        """The iteration up to which the log and the results that lie under the run's name are its own.

        That of the checkpoint, where it is the run's own, last or an older one; 0 where the run starts afresh, or from the
        checkpoint of another.
        """
        name, folder = self.args.ckpt_name, self.checkpoints.folder.resolve()
        return self.iter if name == "last" or self.checkpoints.path(name).resolve().parent == folder else 0

    def announce(self, environment):
        """Prints what starts, on what and to where, and what is worth knowing of the settings."""
        start = f"resumed at iteration {self.iter:,}" if self.iter else "a new run"
        print(
            f"{self.args.viz_name}: {start}; {len(self.data):,} images; {environment['device']}, "
            f"{environment['threads']} threads, {environment['precision']}; curves and pictures in {self.outputs}"
        )
        if (
            environment["precision"] == "bf16"
            and self.device.type == "cpu"
            and torch.backends.cpu.get_cpu_capability() == "AVX2"
        ):
            print(
                "bf16 has no instructions on this CPU, which is without AVX-512: --precision float32 is about ten times as fast"
            )
        if self.args.objective == "H":
            beta = normalised_beta(
                self.args.beta, self.args.z_dim, self.data.channels * self.args.image_size**2
            )
            print(
                f"beta {self.args.beta:g}: normalised, by {self.args.z_dim} latents and the size of an image, {beta:.3g}"
            )

    def earlier_sessions(self, own):
        """What args.json said of code and machine when this run was started before: a dict for each part, until an iteration."""
        try:
            about = json.loads((self.outputs / "args.json").read_text()) if own else {}
            before = about.pop("before", [])
            about.pop("arguments")
            return [session for session in before if session["until"] < self.iter] + [
                {"until": self.iter, **about}
            ]
        # a fresh start, or a file that others made
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return []

    def set_aside_results(self, own):
        """Renames the folders of pictures and scores after that iteration: they are those of the run that is replaced."""
        for folder in list(self.outputs.iterdir()):
            if folder.name.isdecimal() and int(folder.name) > own:
                old = folder.with_name(f"{folder.name}.old")
                shutil.rmtree(old, ignore_errors=True)
                folder.rename(old)

    def environment(self):
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return {
            "device": name,
            "threads": torch.get_num_threads(),
            "precision": self.args.precision,
            "versions": versions(),
        }

    def stop_if_not_finite(self):
        """Waits for the device; raises UserError if a loss, or what the last step left, is not finite."""
        bad = int(self.first_bad)
        if bad == NEVER and not all(p.isfinite().all() for p in self.net.parameters()):
            bad = self.iter
        if bad != NEVER:
            raise UserError(
                f"the loss is not finite since iteration {bad:,}: stopped; the checkpoints from "
                f"before stay in {self.checkpoints.folder}; a lower --lr may help"
            )

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
                "epoch": self.iter // self.batches_per_epoch,
                "position": self.iter % self.batches_per_epoch,
                "window": {"sums": self.sums, "count": self.count, "last_row": self.last_row},
                "data": self.data.identity,
                "arguments": vars(self.args),
                **self.environment(),
            }
        )
        self.saved_iter = self.iter

    def find_checkpoint(self):
        """Reads the checkpoint that args names, if there is one, and checks that it fits args."""
        args, folder = self.args, self.checkpoints.folder
        if args.train and args.ckpt_name != "last" and not args.overwrite and self.checkpoints.paths():
            raise UserError(
                f"{folder} holds checkpoints that --ckpt_name {args.ckpt_name} would overwrite: to go on with "
                "them leave it out; else give another --viz_name, or --overwrite True to lose them"
            )
        state = None if args.ckpt_name == "none" else self.checkpoints.load(args.ckpt_name)
        if state is None:
            if not args.train:
                raise UserError(f"--train False needs a checkpoint, and {folder} has none: train first")
            return None
        if state["arguments"] is None:
            print(
                f"checkpoint {args.ckpt_name} has weights and optimiser of iteration {state['iter']:,}, but no flags "
                "(those given now count), random numbers or averages for the log"
            )
            return state
        saved = saved_flags(state["arguments"])
        if fault := fault_of_flags(saved):
            raise UserError(f"checkpoint {args.ckpt_name} is damaged or of another program: {fault}")
        if args.train:
            self.check_fits(saved)
        else:
            vars(args).update(defining_flags(saved))
            self.check_folder(saved)
        return state

    def check_folder(self, saved):
        """Before the images of another folder are prepared for nothing."""
        made_with = str(getattr(saved, "dset_dir", self.args.dset_dir))
        if (
            saved.dataset == "folder"
            and self.args.dset_dir == "data"
            and os.path.realpath(made_with) != os.path.realpath("data")
        ):
            raise UserError(
                f"checkpoint {self.args.ckpt_name} is of the images in {made_with}: give --dset_dir {made_with}, or "
                "where they are now"
            )

    def check_fits(self, saved):
        before = {**vars(saved), **defining_flags(saved)}
        others = [
            f"{name} {before.get(name)} (now {value})"
            for name, value in defining_flags(self.args).items()
            if before.get(name) != value
        ]
        if others and self.args.ckpt_name != "last":
            raise UserError(
                f"checkpoint {self.args.ckpt_name} was made with other settings, and goes on with those only: "
                + ", ".join(others)
            )
        if others:
            raise UserError(
                f"run {self.args.viz_name} was made with other settings: {', '.join(others)}; "
                "a new run needs another --viz_name, or --ckpt_name none --overwrite True to lose this one"
            )

    def load(self, state):
        """Takes up a run where state left it: on the CPU, to the bit."""
        data = state.get("data", self.data.identity)  # old checkpoints, of dSprites, do not say
        if data != self.data.identity:
            raise UserError(
                f"run {self.args.viz_name} was made with {data}, and {self.args.dset_dir} holds "
                f"{self.data.identity}: {'a new run needs another --viz_name' if self.args.train else 'draw it with those'}"
            )
        try:
            self.net.load_state_dict(state["model_states"]["net"])
        except RuntimeError:
            raise UserError(
                f"checkpoint {self.args.ckpt_name} holds another network than --model {self.args.model} "
                f"--z_dim {self.args.z_dim} for {self.data.channels} channels"
            ) from None
        if not all(p.isfinite().all() for p in self.net.parameters()):
            raise UserError(f"checkpoint {self.args.ckpt_name} has weights that are not finite")
        try:
            if self.args.train:  # weights without an optimiser can be looked at
                self.load_optimizer(state["optim_states"]["optim"])
            self.iter = state["iter"]
            if state["arguments"] is not None:
                self.load_streams(state)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"checkpoint {self.args.ckpt_name} cannot be taken up: its optimiser, window or noise does "
                f"not fit ({str(error).splitlines()[0]})"
            ) from None

    def load_optimizer(self, saved):
        """Takes the state of the optimiser; its settings are those of the flags and of the device here."""
        if not saved["param_groups"]:
            raise UserError(
                f"checkpoint {self.args.ckpt_name} holds weights without an optimiser: with --train False it "
                "can be drawn and scored, but not trained on, as its optimiser is missing"
            )
        groups = [
            {**now, "params": before["params"]}
            for now, before in zip(
                self.optim.state_dict()["param_groups"], saved["param_groups"], strict=True
            )
        ]
        self.optim.load_state_dict({"state": saved["state"], "param_groups": groups})
        names = ["sum"] if self.args.optimizer == "adagrad" else ["exp_avg", "exp_avg_sq"]
        for p in self.net.parameters():
            if (
                any(self.optim.state[p][name].shape != p.shape for name in names)
                or self.optim.state[p]["step"].numel() != 1
            ):
                raise ValueError("the optimiser's averages are of other shapes")

    def load_streams(self, state):
        """Takes up the open window of the log and the noise."""
        window = state["window"]
        if window["sums"].shape != self.sums.shape or len(window["last_row"] or self.sums) != len(self.sums):
            raise ValueError("window of another length")
        self.sums.copy_(window["sums"])
        self.count, self.last_row = window["count"], window["last_row"]
        now = self.environment()
        if (state["device"] == "cpu") == (self.device.type == "cpu"):
            self.noise.set_state(state["generators"]["noise"])
        else:  # the generators of other devices have other states
            self.noise.manual_seed(stream_seed(self.args.seed, "noise", self.iter))
        for name, effect in (
            ("device", "the last digits"),
            ("threads", "the last digits"),
            ("precision", "all but the first digits"),
        ):
            before = state.get(name, "float32")  # checkpoints from before --precision have none
            if self.args.train and before != now[name]:
                print(
                    f"the checkpoint was made with {name} {before}, this is {now[name]}: "
                    f"{effect} may differ from those of a run without a break"
                )
