"""The networks are those of the papers; a checkpoint gives its network back, which others' tools take."""

import io

import pytest
import torch
from torch import nn

from helpers import ROOT
from model import MODELS, BetaVAE, BetaVAE_B, BetaVAE_FC, BetaVAE_H, BetaVAE_S, kaiming_init
from run.checkpoint import load_model
from utils import UserError

WEIGHTS = ROOT / "misc" / "dsprites_B.pt"

# Position and shape of each weight in public checkpoints; (out, in) or (out, in, 4, 4), transposed convs (in, out, 4, 4).
CONV = (32, 32, 4, 4)
LAYERS = {
    BetaVAE_B: (
        {0: (32, 1, 4, 4), 2: CONV, 4: CONV, 6: CONV, 9: (256, 512), 11: (256, 256), 13: (20, 256)},
        {0: (256, 10), 2: (256, 256), 4: (512, 256), 7: CONV, 9: CONV, 11: CONV, 13: (32, 1, 4, 4)},
    ),
    BetaVAE_H: (
        {0: (32, 3, 4, 4), 2: CONV, 4: (64, 32, 4, 4), 6: (64, 64, 4, 4), 8: (256, 64, 4, 4), 11: (20, 256)},
        {0: (256, 10), 3: (256, 64, 4, 4), 5: (64, 64, 4, 4), 7: (64, 32, 4, 4), 9: CONV, 11: (32, 3, 4, 4)},
    ),
    BetaVAE_FC: (
        {1: (1200, 4096), 3: (1200, 1200), 5: (20, 1200)},
        {0: (1200, 10), 2: (1200, 1200), 4: (1200, 1200), 6: (4096, 1200)},
    ),
    BetaVAE_S: (  # our own
        {0: (32, 1, 4, 4), 2: CONV, 4: CONV, 6: CONV, 9: (256, 512), 11: (256, 256), 13: (20, 256)},
        {
            1: (128, 12, 1, 1),
            3: (128, 128, 1, 1),
            5: (128, 128, 1, 1),
            7: (32, 128, 1, 1),
            9: CONV,
            11: CONV,
            13: (32, 1, 4, 4),
        },
    ),
}
PARAMETERS = {BetaVAE_B: 502_005, BetaVAE_H: 765_335, BetaVAE_FC: 14_196_516, BetaVAE_S: 324_213}


@pytest.mark.parametrize("cls", LAYERS)
def test_parameters_and_keys_are_those_of_the_papers_and_of_public_checkpoints(cls):
    model = cls()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[cls]
    parts = zip(("encoder", "decoder"), LAYERS[cls])
    expected = {f"{part}.{i}.weight": shape for part, layers in parts for i, shape in layers.items()}
    assert {k: tuple(v.shape) for k, v in model.state_dict().items() if k.endswith("weight")} == expected


@pytest.mark.parametrize(
    "cls, nc, z_dim",
    [
        (BetaVAE_B, 1, 10),
        (BetaVAE_B, 3, 32),
        (BetaVAE_H, 3, 32),
        (BetaVAE_H, 1, 10),
        (BetaVAE_FC, 3, 4),
        (BetaVAE_S, 3, 5),
    ],
)
def test_load_model_gives_the_network_of_any_checkpoint_in_eval_mode(tmp_path, cls, nc, z_dim):
    net, x = cls(z_dim, nc), torch.rand(2, nc, 64, 64)
    public = {"iter": 1, "model_states": {"net": net.state_dict()}, "optim_states": {"optim": {}}}
    torch.save(public, tmp_path / "last")
    loaded = load_model(tmp_path / "last")
    assert type(loaded) is cls and not loaded.training
    torch.testing.assert_close(loaded.encode(x)[0], net.encode(x)[0])
    x_recon, mu, logvar, z = loaded(x)
    assert x_recon.shape == x.shape and mu.shape == logvar.shape == z.shape == (2, z_dim)


class Wide(BetaVAE_H):
    """Another network than H, with weights of the same shapes."""


class Small(BetaVAE):
    """A fully connected network of another size, and without biases inside."""

    image_size = 32

    def __init__(self, z_dim=4, nc=1):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(nc * 1024, 2 * z_dim, bias=False))
        self.decoder = nn.Sequential(nn.Linear(z_dim, nc * 1024), nn.Unflatten(1, (nc, 32, 32)))
        self.apply(kaiming_init)


class Unbiased(BetaVAE_B):
    """A network whose last layer has no bias."""

    def __init__(self, z_dim=4, nc=1):
        super().__init__(z_dim, nc)
        self.decoder[-1] = nn.ConvTranspose2d(32, nc, 4, 2, 1, bias=False)


@pytest.mark.parametrize("cls, nc", [(Wide, 3), (Small, 2), (Unbiased, 3)])
def test_load_model_gives_a_network_that_a_user_has_added(tmp_path, monkeypatch, cls, nc):
    monkeypatch.setitem(MODELS, "mine", cls)
    net, z = cls(4, nc), torch.randn(2, 4)
    state = {"iter": 1, "model_states": {"net": net.state_dict()}, "arguments": {"model": "mine"}}
    torch.save(state, tmp_path / "last")
    loaded = load_model(tmp_path / "last")
    assert type(loaded) is cls
    torch.testing.assert_close(loaded.decode(z), net.decode(z))


def test_the_weights_that_come_with_the_repository_load_and_what_is_none_is_one_line(tmp_path):
    assert isinstance(load_model(WEIGHTS), BetaVAE_B)
    for weights in ({"a": torch.zeros(1)}, {"decoder.0.weight": torch.zeros(3)}):
        torch.save({"iter": 1, "model_states": {"net": weights}}, tmp_path / "last")
        with pytest.raises(UserError, match="none of the networks H, B, FC, S"):
            load_model(tmp_path / "last")


# What people do with a loaded network.


@pytest.mark.parametrize(
    "dtype, accuracy", [(torch.float64, 1e-5), (torch.float16, 0.02), (torch.bfloat16, 0.1)]
)
def test_a_network_computes_in_another_precision_from_end_to_end(dtype, accuracy):
    x = torch.zeros(3, 1, 64, 64)
    for i in range(3):
        x[i, :, 8 + 12 * i : 20 + 15 * i, 10:25] = 1  # rectangles, as the network was trained on
    net, converted = load_model(WEIGHTS), load_model(WEIGHTS).to(dtype)
    mu, logvar = net.encode(x)
    z = mu.to(dtype)
    pairs = (converted.encode(x.to(dtype))[0], mu), (converted.decode(z), net.decode(z.float()))
    assert [one.dtype for one, _ in pairs] == [dtype] * 2
    for one, other in pairs:
        assert (one.float() - other).abs().max() <= accuracy * max(1, other.abs().max() / 10)
    if dtype == torch.float64:
        assert {each.dtype for each in converted(x.double())} == {dtype}


def test_torch_func_gives_the_jacobian_of_a_decoder_and_of_an_encoder():
    net = load_model(WEIGHTS)
    z, x = torch.randn(1, 10), torch.rand(1, 1, 64, 64)

    def pixels(z):
        return net.decode(z)[..., 31:33, 31:33]

    for function, at in ((pixels, z), (lambda x: net.encode(x)[0], x)):
        expected = torch.autograd.functional.jacobian(function, at)
        torch.testing.assert_close(torch.func.jacrev(function)(at), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_a_traced_decoder_is_saved_loaded_and_gives_the_same():
    net, z, file = load_model(WEIGHTS), torch.randn(3, 10), io.BytesIO()
    torch.jit.save(torch.jit.trace(net.decoder, z), file)
    file.seek(0)
    z = torch.randn(5, 10)
    torch.testing.assert_close(torch.jit.load(file)(z), net.decode(z))


# Inside.


def test_what_is_decoded_is_z_whose_noise_comes_from_the_generator_alone_and_mu_comes_before_logvar():
    model, x, state = BetaVAE_B(), torch.rand(2, 1, 64, 64), torch.get_rng_state()
    x_recon, mu, logvar, z = model(x, torch.Generator().manual_seed(5))
    torch.testing.assert_close(model.decode(z), x_recon)
    torch.testing.assert_close(torch.cat([mu, logvar], dim=1), model.encoder(x))
    eps = torch.randn(2, 10, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(z, mu + (logvar / 2).exp() * eps)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("cls, nc", [(BetaVAE_B, 1), (BetaVAE_H, 3), (BetaVAE_FC, 1), (BetaVAE_S, 1)])
def test_variance_stays_of_order_one_through_all_layers(cls, nc):
    """Fails with torch's kaiming_normal_, which takes the wrong axis of a transposed conv."""
    torch.manual_seed(0)
    model = cls(10, nc)
    for layers, h in ((model.encoder, torch.randn(64, nc, 64, 64)), (model.decoder, torch.randn(64, 10))):
        for layer in layers:
            h = layer(h)
            if hasattr(layer, "weight"):
                assert 0.4 < h.pow(2).mean() < 4 and not layer.bias.any(), layer


def test_every_layer_is_initialised_with_its_true_fan_in():
    torch.manual_seed(0)
    B, H = BetaVAE_B(), BetaVAE_H()
    fan_ins = {B.encoder[2]: 512, B.decoder[7]: 128, B.decoder[13]: 128, H.decoder[3]: 256}
    for layer, fan_in in fan_ins.items():
        assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.12)
