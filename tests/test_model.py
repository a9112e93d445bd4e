import pytest
import torch
from torch import nn

from helpers import ROOT
from model import MODELS, BetaVAE, BetaVAE_B, BetaVAE_FC, BetaVAE_H, kaiming_init, load_model
from utils import UserError

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
}
PARAMETERS = {BetaVAE_B: 502_005, BetaVAE_H: 765_335, BetaVAE_FC: 14_196_516}


@pytest.mark.parametrize("cls", LAYERS)
def test_parameters_and_keys_are_those_of_the_papers_and_of_public_checkpoints(cls):
    model = cls()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[cls]
    parts = zip(("encoder", "decoder"), LAYERS[cls])
    expected = {f"{part}.{i}.weight": shape for part, layers in parts for i, shape in layers.items()}
    assert {k: tuple(v.shape) for k, v in model.state_dict().items() if k.endswith("weight")} == expected


SIZES = [(BetaVAE_B, 1, 10), (BetaVAE_B, 3, 32), (BetaVAE_H, 3, 32), (BetaVAE_H, 1, 10), (BetaVAE_FC, 3, 4)]


@pytest.mark.parametrize("cls, nc, z_dim", SIZES)
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

    def encode(self, x):
        return super().encode(x[..., ::2, ::2])


class Small(BetaVAE):
    """A fully connected network of another size, and without biases inside."""

    image_size = 32

    def __init__(self, z_dim=4, nc=1):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(nc * 1024, 2 * z_dim, bias=False))
        self.decoder = nn.Sequential(nn.Linear(z_dim, nc * 1024), nn.Unflatten(1, (nc, 32, 32)))
        self.apply(kaiming_init)


@pytest.mark.parametrize("cls, nc", [(Wide, 3), (Small, 2)])
def test_load_model_gives_a_network_that_a_user_has_added(tmp_path, monkeypatch, cls, nc):
    monkeypatch.setitem(MODELS, "mine", cls)
    net = cls(4, nc)
    state = {"iter": 1, "model_states": {"net": net.state_dict()}, "arguments": {"model": "mine"}}
    torch.save(state, tmp_path / "last")
    loaded, z = load_model(tmp_path / "last"), torch.randn(2, 4)
    assert type(loaded) is cls
    torch.testing.assert_close(loaded.decode(z), net.decode(z))


def test_what_is_decoded_is_z_whose_noise_comes_from_the_generator_alone_and_mu_comes_before_logvar():
    model, x, state = BetaVAE_B(), torch.rand(2, 1, 64, 64), torch.get_rng_state()
    x_recon, mu, logvar, z = model(x, torch.Generator().manual_seed(5))
    torch.testing.assert_close(model.decode(z), x_recon)
    torch.testing.assert_close(torch.cat([mu, logvar], dim=1), model.encoder(x))
    eps = torch.randn(2, 10, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(z, mu + (logvar / 2).exp() * eps)
    assert torch.equal(state, torch.get_rng_state())


def test_the_weights_that_come_with_the_repository_load_and_what_is_none_is_one_line(tmp_path):
    net = load_model(ROOT / "misc" / "dsprites_B.pt")
    assert isinstance(net, BetaVAE_B) and net.decode(torch.zeros(1, 10)).shape == (1, 1, 64, 64)
    for weights in ({"a": torch.zeros(1)}, {"decoder.0.weight": torch.zeros(3)}, {"x": 1}):
        torch.save({"iter": 1, "model_states": {"net": weights}}, tmp_path / "last")
        with pytest.raises(UserError, match="none of the networks H, B, FC"):
            load_model(tmp_path / "last")
    with pytest.raises(UserError, match="cannot be read"):
        load_model(tmp_path / "nothing")


@pytest.mark.parametrize("cls, nc", [(BetaVAE_B, 1), (BetaVAE_H, 3), (BetaVAE_FC, 1)])
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
    for layer, fan_in in [
        (B.decoder[7], 128),
        (B.decoder[13], 128),
        (H.decoder[3], 256),
        (B.encoder[2], 512),
    ]:
        assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.12)
