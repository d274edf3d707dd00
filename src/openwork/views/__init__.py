"""Ways to look at what a run found. `build_page` writes one self-contained HTML file. Nothing here needs torch."""

from openwork.views.page import build_page

__all__ = ["build_page"]
