"""A visdom page as a person sees it, in Chromium without a screen. Needs chromium, chromedriver and selenium."""

import contextlib
import importlib.util
import os
import shutil
import tempfile

import pytest

FLAGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync disable-background-networking "
)
FLAGS += "disable-component-update disable-extensions disable-dev-shm-usage window-size=1600,1200"

# A dict per pane, in the order shown. "drawn": length in pixels of each line; "image": size of the decoded picture.
PANES = """
return [...document.querySelectorAll('.window')].map(w => {
  const plot = w.querySelector('.js-plotly-plot'), img = w.querySelector('img.content-image');
  const texts = s => [...w.querySelectorAll(s)].map(t => t.textContent);
  const drawn = [...w.querySelectorAll('path.js-line')].map(p => Math.round(p.getTotalLength()));
  const box = w.getBoundingClientRect();
  return {
    title: texts('.bar > div.pull-right').join(''),
    box: [box.x, box.y, box.width, box.height].map(Math.round),
    legend: texts('.legendtext'), axes: [...texts('.xtitle'), ...texts('.ytitle')],
    lines: plot ? plot.data.map((t, i) => ({x: t.x, drawn: drawn[i] || 0})) : [],
    image: img && img.complete && img.naturalWidth ? [img.naturalWidth, img.naturalHeight] : null,
    text: plot || img ? '' : w.querySelector('.content').textContent,
  };
});"""


def unavailable(reason):
    """Skips a test, or fails it where BETA_VAE_BROWSER says that there must be a browser."""
    (pytest.fail if os.environ.get("BETA_VAE_BROWSER") else pytest.skip)(reason)


@contextlib.contextmanager
def chromium():
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver or not importlib.util.find_spec("selenium"):
        unavailable(
            "needs chromium, chromedriver (Debian: chromium and chromium-driver) and pip install selenium"
        )
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    with tempfile.TemporaryDirectory(prefix="chromium.", ignore_cleanup_errors=True) as profile:
        for flag in [*FLAGS.split(), f"user-data-dir={profile}"]:
            options.add_argument(f"--{flag}")
        # With the driver's path, selenium looks for none on the internet.
        page = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            yield page
        finally:
            page.quit()


def ready(pane):
    return pane["text"] or pane["image"] or pane["lines"] and all(line["drawn"] for line in pane["lines"])


def look(page, url, until):
    """Opens url, if it is not open; waits till until({title: pane}) is true and all is drawn; returns that dict."""
    from selenium.webdriver.support.ui import WebDriverWait

    if page.current_url != url:
        page.get(url)
    seen = []

    def done(_):  # the same twice: panes slide to their places, and lines are drawn one by one
        before, seen[:] = seen[:], page.execute_script(PANES)
        return seen == before and all(map(ready, seen)) and until({pane["title"]: pane for pane in seen})

    WebDriverWait(page, 60, poll_frequency=0.3).until(done, f"the page shows {[p['title'] for p in seen]}")
    return {pane["title"]: pane for pane in seen}
