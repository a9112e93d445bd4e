"""explore.html: what its canvas shows is what torch decodes, in Chromium, from disk, with the network off."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from browser import chromium, wait
from model import MODELS
from utils import UserError
from viz import explore
from viz.latents import Latents

KLD = [0.5, 0.003, 2.25, 0.0, 1.0, 4.0, 3.0, 0.7, 0.04, 0.3]  # nats; latents 1, 3 and 8 are folded
FACTORS = ("shape", "colour", "posX", "posY", "scale")
INFORMATION = np.full((10, 5), 0.1)
INFORMATION[1, 1], INFORMATION[2, 2], INFORMATION[[0, 7], 4] = 0.5, 3.6, 2.0  # latents 0 and 7 share most

MOVE = """const [values, done] = arguments;  // moves every slider as a hand does; then the pixels of each z
(async () => {
  const images = [];
  for (const z of values) {
    z.forEach((v, j) => { rows[j].slider.value = v; rows[j].slider.dispatchEvent(new Event("input")); });
    while (stale) await new Promise(requestAnimationFrame);
    images.push([...find("#image").getContext("2d").getImageData(0, 0, 64, 64).data]);
  }
  done(images);
})()"""


def make_page(folder, model="B", channels=1, title="beta-VAE"):
    """A page of a new network, with three images to start from; returns its path, the network and their means."""
    torch.manual_seed(5)
    net, latents = MODELS[model](10, channels).eval(), Latents(KLD, FACTORS, INFORMATION)
    images, mu = torch.rand(3, channels, 64, 64), torch.randn(3, 10)
    explore.write_page(folder / "explore.html", net, images, mu, latents, title)
    return folder / "explore.html", net, mu


@torch.no_grad()
def decoded(net, z):
    """What torch makes of z (N, z_dim): values from 0 to 255, (N, 64, 64, RGB)."""
    return 255 * torch.sigmoid(net.decode(torch.as_tensor(z))).movedim(1, -1).expand(-1, -1, -1, 3).numpy()


def pixels(data):
    """Those of a canvas, as decoded."""
    data = np.array(data, dtype=float).reshape(-1, 64, 64, 4)
    assert (data[..., 3] == 255).all()
    return data[..., :3]


@pytest.fixture(scope="module")
def browser():
    with chromium() as driver:
        driver.execute_cdp_cmd("Network.enable", {})
        off = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        driver.execute_cdp_cmd("Network.emulateNetworkConditions", off)
        driver.set_script_timeout(60)
        yield driver


@pytest.fixture
def view(browser):
    """Opens a page of a new network; at the end of a test, nothing may have failed in the browser."""

    def view(folder, **options):
        path, view.net, view.mu = make_page(folder, **options)
        browser.get(path.as_uri())
        view.until("!frame")
        return browser

    view.until = lambda script: wait(browser, "return " + script)
    view.state = lambda: browser.execute_script("return z")
    view.pair = lambda: browser.execute_script("return pair.map(j => z[j])")
    yield view
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


# The image.


@pytest.mark.browser
@pytest.mark.parametrize("model, channels", [("B", 1), ("H", 3), ("FC", 1), ("S", 1)])
def test_canvas_shows_what_torch_decodes(tmp_path, view, model, channels):
    page = view(tmp_path, model=model, channels=channels)
    z = np.random.default_rng(3).uniform(-3, 3, (10, 10)).round(1).astype("float32")
    shown = pixels(page.execute_async_script(MOVE, z.tolist()))
    assert abs(shown - decoded(view.net, z)).max() < 2
    assert shown.std(axis=0).max() > 10  # ten different images


# The latents.


@pytest.mark.browser
def test_latents_are_sorted_by_kl_and_named_and_those_of_no_weight_folded_and_nameless(tmp_path, view):
    page = view(tmp_path, title="run, iteration 7")
    rows = page.execute_script("return all.map(j => rows[j].innerText)")[:7]
    rows = [re.sub(r"\s+", " ", row) for row in rows]
    assert [row[:3] for row in rows] == [f"z{j} " for j in (5, 6, 2, 4, 7, 0, 9)]
    assert "posX 90 %" in rows[2] and "KL 2.25 nats" in rows[2]
    folded = page.execute_script("return find('details').innerText + find('details').textContent")
    assert folded.startswith("3 latents under 0.1 nats") and "colour" not in folded
    assert page.execute_script("return find('h1').innerText") == "run, iteration 7"


@pytest.mark.browser
def test_strip_traverses_the_latent_under_the_pointer_and_arrow_keys_move_it_by_a_tenth(tmp_path, view):
    from selenium.webdriver import ActionChains

    page = view(tmp_path)
    ActionChains(page).move_to_element(page.execute_script("return rows[7]")).perform()
    view.until("shown === 7 && !frame")
    z = view.mu[:1].repeat(7, 1)
    z[:, 7] = torch.arange(-3, 4)
    strip = "return tiles.map(t => [...t.firstChild.getContext('2d').getImageData(0, 0, 64, 64).data])"
    assert abs(pixels(page.execute_script(strip)) - decoded(view.net, z)).max() < 2
    page.execute_script("tiles[5].click()")
    page.execute_script("return rows[7].slider").send_keys("\ue014\ue013\ue012")  # right, up, left
    assert view.state()[7] == pytest.approx(2.1)


# The pad.

MAP = "return [...find('#map').getContext('2d').getImageData(%d, %d, 64, 64).data]"


@pytest.mark.browser
def test_the_pad_shows_the_plane_of_the_two_latents_that_share_most_or_of_those_picked(tmp_path, view):
    from selenium.webdriver.support.ui import Select

    page = view(tmp_path)
    for id, j, picked in ((None, 0, [7, 0]), ("up", 2, [7, 2]), ("across", 2, [2, 7])):  # the last: they swap
        if id:
            Select(page.find_element("id", id)).select_by_value(str(j))
        view.until("!frame")
        assert page.execute_script("return pair") == picked
        z = view.mu[:1].repeat(2, 1)
        z[:, picked] = torch.tensor([[3.0, -3.0], [-2.0, 1.0]])  # right and down; left and up
        tiles = [page.execute_script(MAP % at) for at in ((6 * 64, 6 * 64), (64, 2 * 64))]
        assert abs(pixels(tiles) - decoded(view.net, z)).max() < 2


@pytest.mark.browser
def test_the_pad_is_moved_by_mouse_touch_and_arrow_keys(tmp_path, view):
    from selenium.webdriver import ActionChains

    page = view(tmp_path)
    pad = page.find_element("id", "pad")
    page.execute_script("arguments[0].scrollIntoView()", pad)
    unit = pad.size["width"] / 7  # pixels
    mouse = ActionChains(page, duration=50).move_to_element(pad).click_and_hold()
    mouse.move_by_offset(round(2 * unit), round(-unit)).release().perform()  # right and up
    view.until("Math.abs(z[7] - 2) < 0.05 && !frame")
    assert view.pair() == pytest.approx([2, 1], abs=0.05)
    others = [j for j in range(10) if j not in (7, 0)]
    assert [view.state()[j] for j in others] == pytest.approx(view.mu[0, others].tolist(), abs=6e-4)

    box = page.execute_script("return arguments[0].getBoundingClientRect()", pad)
    for kind, x, y in (("touchStart", 0, 0), ("touchMove", -1, 2), ("touchEnd", 0, 0)):
        point = dict(x=box["x"] + (3.5 + x) * unit, y=box["y"] + (3.5 + y) * unit)
        points = [] if kind == "touchEnd" else [point]
        page.execute_cdp_cmd("Input.dispatchTouchEvent", dict(type=kind, touchPoints=points))
    view.until("z[7] < 0 && !frame")
    assert view.pair() == pytest.approx([-1, -2], abs=0.05)

    x, y = view.pair()
    pad.send_keys("\ue014\ue014\ue013")  # right, right, up
    assert view.pair() == pytest.approx([x + 0.2, y + 0.1], abs=1e-3)


# Where to start from.


@pytest.mark.browser
def test_image_reset_and_random_set_all_sliders(tmp_path, view):
    page = view(tmp_path)
    assert view.state() == pytest.approx(view.mu[0].tolist(), abs=6e-4)  # opens with the first image
    page.execute_script("document.querySelectorAll('nav button:has(img)')[2].click()")
    assert view.state() == pytest.approx(view.mu[2].tolist(), abs=6e-4)
    page.execute_script("find('#reset').click()")
    assert view.state() == [0] * 10
    drawn = page.execute_script("return Array.from({length: 300}, () => (find('#random').click(), z))")
    assert abs(np.mean(drawn)) < 0.1 and abs(np.std(drawn) - 1) < 0.1  # of 3,000 numbers: 5 sigma


# The file.


def test_page_is_one_file_that_loads_nothing(tmp_path):
    path, _, _ = make_page(tmp_path, title="</script><b>run")
    text = path.read_text()
    assert not re.search(r"https?:|\bsrc=[\"'](?!data:)|@import|url\(|<link", text)
    assert text.count("</script>") == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["explore.html"]
    assert path.stat().st_size < 1e6


@pytest.mark.parametrize(
    "layer", [nn.LeakyReLU(), nn.Conv2d(1, 1, 3, padding=1), nn.ConvTranspose2d(1, 1, 3, 1, 2, dilation=2)]
)
def test_a_decoder_that_the_page_cannot_run_is_named_and_no_page_written(tmp_path, layer):
    layers = nn.Sequential(nn.Linear(10, 4096), nn.Unflatten(1, (1, 64, 64)), layer)
    images, mu = torch.rand(1, 1, 64, 64), torch.zeros(1, 10)
    with pytest.raises(UserError, match=re.escape(str(layer))):
        explore.write_page(tmp_path / "a.html", SimpleNamespace(decoder=layers), images, mu, Latents(KLD))
    assert not list(tmp_path.iterdir())
