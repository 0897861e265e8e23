"""The browser that pages are opened in, under any of its names; None where there is none."""

import shutil

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
