"""Chromium without a screen. Needs chromium, chromedriver and selenium."""

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


def wait(page, script):
    """Waits till the script returns something that is true, and returns that."""
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(page, 60, poll_frequency=0.02)
    return wait.until(lambda _: page.execute_script(script), f"in vain for {script}")
