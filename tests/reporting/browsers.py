"""A headless Chromium for the tests of pages, and a page that notes what goes wrong in it."""

import os
import shutil
from contextlib import contextmanager


def chromium():
    """Where Chromium is, or None; RIEMAE_CHROMIUM names another one."""
    given = os.environ.get("RIEMAE_CHROMIUM")
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return given or next(filter(None, found), None)


ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def opened(browser, path, **options):
    """A page with what it said and asked for: ``page.said`` and ``page.asked`` are lists."""
    settings = {"viewport": {"width": 1280, "height": 900}, **options}
    context = browser.new_context(**settings)
    page = context.new_page()
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(path.resolve().as_uri())
    try:
        yield page
    finally:
        context.close()
