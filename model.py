"""The VAEs: BetaVAE_H and BetaVAE_FC (Higgins et al., 2017), BetaVAE_B (Burgess et al., 2018), BetaVAE_S (Watters et al., 2019).

Each has an encoder x -> (mu, logvar) of a diagonal Gaussian q(z|x) and a decoder z -> logits of
p(x|z). Both are plain nn.Sequential, with layers numbered as in the checkpoints of 1Konny/Beta-VAE.
ConvTranspose2d is torch's, made faster on the CPU (layers.py).
"""

import math

import torch
from torch import nn

from layers import ConvTranspose2d


def kaiming_init(module):
    """Kaiming normal for ReLU, zero bias: std = sqrt(2 / fan_in) (He et al., 2015).

    The fan-in of a transposed conv is the number of terms in the sum that makes one output
    value: C_in * k^2 / stride^2. torch's kaiming_normal_ takes C_out * k^2 instead, which makes
    the decoder's activations shrink at every layer and its last layer three times too large. With
    that, or with torch's default, objective B stays at the data's mean image.
    A transposed conv of stride 1 is only used on a 1x1 input here, where fan_in = C_in.

    Output layers (mu and logvar, logits) are initialised in the same way: their input went through
    a ReLU, which halves its second moment, and the 2 makes up for it. So mu, logvar and logits
    start with a variance of order 1, as do the activations of all earlier layers. For the tanh
    layers of BetaVAE_FC the 2 lies between what preserves small signals (1) and what torch uses (25 / 9).
    """
    if not isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        return
    if isinstance(module, nn.ConvTranspose2d):
        k, stride = module.kernel_size[0], module.stride[0]
        fan_in = module.in_channels * (k / stride) ** 2 if stride > 1 else module.in_channels
    else:
        fan_in = module.weight[0].numel()
    nn.init.normal_(module.weight, std=math.sqrt(2 / fan_in))
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def reparameterise(mu, logvar, generator=None):
    """z = mu + sigma * eps with eps ~ N(0, I) from generator; all (B, z_dim)."""
    eps = torch.randn(mu.shape, dtype=mu.dtype, device=mu.device, generator=generator)
    return mu + torch.exp(0.5 * logvar) * eps


class BetaVAE(nn.Module):
    """What all models share. To add one: a subclass with __init__(z_dim, nc), named in MODELS.

    It sets self.encoder, whose last layer gives mu and logvar, and then self.decoder, each an nn.Sequential. Neither holds
    batch norm or dropout: pictures and scores during training take the network as it is, and dropout's random numbers are
    not saved.
    """

    image_size = 64  # width and height, in pixels, of the images that the network takes

    def encode(self, x):
        """x (B, nc, image_size, image_size) in [0, 1] -> mu, logvar of q(z|x), each (B, z_dim), in the dtype of x."""
        features = self.encoder[:-1](x)
        with torch.autocast(x.device.type, enabled=False):  # bf16 would round mu by as much as half a sigma
            mu, logvar = self.encoder[-1](features.to(x.dtype)).chunk(2, dim=1)
        return mu, logvar

    def decode(self, z):
        """z (B, z_dim) -> logits (B, nc, image_size, image_size) of p(x|z), in the dtype of z; their sigmoid is the mean image."""
        with torch.autocast(z.device.type, enabled=False):
            features = self.decoder[0](z)
        return self.decoder[1:](features).to(z.dtype)

    def forward(self, x, generator=None):
        """x (B, nc, image_size, image_size) -> x_recon (logits of the same shape), mu, logvar, and one sample z; the last three (B, z_dim)."""
        mu, logvar = self.encode(x)
        z = reparameterise(mu, logvar, generator)
        return self.decode(z), mu, logvar, z


class BetaVAE_H(BetaVAE):
    """Conv VAE of Higgins et al. (2017), Appendix A.1, for 64x64 images (3D Chairs, CelebA)."""

    def __init__(self, z_dim=10, nc=3):
        super().__init__()
        # fmt: off
        self.encoder = nn.Sequential(                               # B, nc, 64, 64
            nn.Conv2d(nc, 32, 4, 2, 1), nn.ReLU(True),              # B,  32, 32, 32
            nn.Conv2d(32, 32, 4, 2, 1), nn.ReLU(True),              # B,  32, 16, 16
            nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU(True),              # B,  64,  8,  8
            nn.Conv2d(64, 64, 4, 2, 1), nn.ReLU(True),              # B,  64,  4,  4
            nn.Conv2d(64, 256, 4, 1), nn.ReLU(True),                # B, 256,  1,  1
            nn.Flatten(),                                           # B, 256
            nn.Linear(256, 2 * z_dim),                              # B, 2 z_dim
        )
        self.decoder = nn.Sequential(                               # B, z_dim
            nn.Linear(z_dim, 256),                                  # B, 256
            nn.Unflatten(1, (256, 1, 1)), nn.ReLU(True),            # B, 256,  1,  1
            ConvTranspose2d(256, 64, 4), nn.ReLU(True),             # B,  64,  4,  4
            ConvTranspose2d(64, 64, 4, 2, 1), nn.ReLU(True),        # B,  64,  8,  8
            ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(True),        # B,  32, 16, 16
            ConvTranspose2d(32, 32, 4, 2, 1), nn.ReLU(True),        # B,  32, 32, 32
            ConvTranspose2d(32, nc, 4, 2, 1),                       # B, nc, 64, 64
        )
        # fmt: on
        self.apply(kaiming_init)


def encoder_B(z_dim, nc):
    """The encoder of Burgess et al. (2018), Appendix A.1: images (B, nc, 64, 64) -> mu and logvar (B, 2 z_dim)."""
    # fmt: off
    return nn.Sequential(                                       # B, nc, 64, 64
        nn.Conv2d(nc, 32, 4, 2, 1), nn.ReLU(True),              # B, 32, 32, 32
        nn.Conv2d(32, 32, 4, 2, 1), nn.ReLU(True),              # B, 32, 16, 16
        nn.Conv2d(32, 32, 4, 2, 1), nn.ReLU(True),              # B, 32,  8,  8
        nn.Conv2d(32, 32, 4, 2, 1), nn.ReLU(True),              # B, 32,  4,  4
        nn.Flatten(),                                           # B, 512
        nn.Linear(512, 256), nn.ReLU(True),                     # B, 256
        nn.Linear(256, 256), nn.ReLU(True),                     # B, 256
        nn.Linear(256, 2 * z_dim),                              # B, 2 z_dim
    )
    # fmt: on


class BetaVAE_B(BetaVAE):
    """Conv VAE of Burgess et al. (2018), Appendix A.1, for 64x64 images (dSprites)."""

    def __init__(self, z_dim=10, nc=1):
        super().__init__()
        self.encoder = encoder_B(z_dim, nc)
        # fmt: off
        self.decoder = nn.Sequential(                               # B, z_dim
            nn.Linear(z_dim, 256), nn.ReLU(True),                   # B, 256
            nn.Linear(256, 256), nn.ReLU(True),                     # B, 256
            nn.Linear(256, 512), nn.ReLU(True),                     # B, 512
            nn.Unflatten(1, (32, 4, 4)),                            # B, 32,  4,  4
            ConvTranspose2d(32, 32, 4, 2, 1), nn.ReLU(True),        # B, 32,  8,  8
            ConvTranspose2d(32, 32, 4, 2, 1), nn.ReLU(True),        # B, 32, 16, 16
            ConvTranspose2d(32, 32, 4, 2, 1), nn.ReLU(True),        # B, 32, 32, 32
            ConvTranspose2d(32, nc, 4, 2, 1),                       # B, nc, 64, 64
        )
        # fmt: on
        self.apply(kaiming_init)


class BetaVAE_FC(BetaVAE):
    """Fully connected VAE of Higgins et al. (2017), Appendix A.1, for 64x64 images (dSprites)."""

    def __init__(self, z_dim=10, nc=1):
        super().__init__()
        # fmt: off
        self.encoder = nn.Sequential(                               # B, nc, 64, 64
            nn.Flatten(),                                           # B, nc 4096
            nn.Linear(nc * 4096, 1200), nn.ReLU(True),              # B, 1200
            nn.Linear(1200, 1200), nn.ReLU(True),                   # B, 1200
            nn.Linear(1200, 2 * z_dim),                             # B, 2 z_dim
        )
        self.decoder = nn.Sequential(                               # B, z_dim
            nn.Linear(z_dim, 1200), nn.Tanh(),                      # B, 1200
            nn.Linear(1200, 1200), nn.Tanh(),                       # B, 1200
            nn.Linear(1200, 1200), nn.Tanh(),                       # B, 1200
            nn.Linear(1200, nc * 4096),                             # B, nc 4096
            nn.Unflatten(1, (nc, 64, 64)),                          # B, nc, 64, 64
        )
        # fmt: on
        self.apply(kaiming_init)


class Broadcast(nn.Module):
    """z (B, z_dim) -> (B, z_dim + 2, size, size): z at each place, then its x (left to right) and y (top to bottom) in [-1, 1]."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, z):
        place = torch.linspace(-1, 1, self.size, dtype=z.dtype, device=z.device)
        y, x = torch.meshgrid(place, place, indexing="ij")
        places = torch.stack([x, y]).expand(len(z), 2, -1, -1)  # B, 2, size, size
        codes = z[:, :, None, None].expand(-1, -1, self.size, self.size)  # B, z_dim, size, size
        return torch.cat([codes, places], dim=1).contiguous(memory_format=torch.channels_last)


class BetaVAE_S(BetaVAE):
    """The encoder of BetaVAE_B with a spatial broadcast decoder, which draws a shape where it is (Watters et al., 2019).

    Ours is made cheap: 8x8 places and three transposed convolutions to 64x64, where the paper's decoder has 64x64 places.
    """

    def __init__(self, z_dim=10, nc=1):
        super().__init__()
        self.encoder = encoder_B(z_dim, nc)
        # fmt: off
        self.decoder = nn.Sequential(                               # B, z_dim
            Broadcast(8),                                           # B, z_dim + 2, 8, 8
            nn.Conv2d(z_dim + 2, 128, 1), nn.ReLU(True),            # B, 128,  8,  8
            nn.Conv2d(128, 128, 1), nn.ReLU(True),                  # B, 128,  8,  8
            nn.Conv2d(128, 128, 1), nn.ReLU(True),                  # B, 128,  8,  8
            nn.Conv2d(128, 32, 1), nn.ReLU(True),                   # B,  32,  8,  8
            ConvTranspose2d(32, 32, 4, 2, 1), nn.ReLU(True),        # B,  32, 16, 16
            ConvTranspose2d(32, 32, 4, 2, 1), nn.ReLU(True),        # B,  32, 32, 32
            ConvTranspose2d(32, nc, 4, 2, 1),                       # B,  nc, 64, 64
        )
        # fmt: on
        self.apply(kaiming_init)


MODELS = {"H": BetaVAE_H, "B": BetaVAE_B, "FC": BetaVAE_FC, "S": BetaVAE_S}


def build_net(model, z_dim, nc, seed):
    """A network of MODELS with new weights drawn from seed; torch's own random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[model](z_dim, nc)
