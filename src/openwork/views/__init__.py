"""Ways to look at what a run found; nothing here needs torch.

`build_page` writes one self-contained HTML file of a run, `build_why` one of a single decision.
"""

from openwork.views.page import build_page
from openwork.views.why import build_why

__all__ = ["build_page", "build_why"]
