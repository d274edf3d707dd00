"""The picture of the README: the circuits of a comparison as its page shows them in a browser.

    python benchmarks/picture.py runs/results/cpu-seed0 docs/assets/quotes.png

Needs Chromium or Chrome (`make browser`) and the development tools of `make setup`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def main() -> None:
    """Takes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a comparison with a page.html")
    parser.add_argument("out", type=Path, help="the PNG to write")
    asked = parser.parse_args()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("no Chromium or Chrome is installed; `make browser` installs one.")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        tab = chromium.new_page(viewport={"width": 1400, "height": 1000})
        tab.goto((asked.run / "page.html").resolve().as_uri())
        tab.wait_for_timeout(500)
        tab.locator("section.circuits .stage").first.screenshot(path=asked.out)
        chromium.close()
    print(asked.out)


if __name__ == "__main__":
    main()
