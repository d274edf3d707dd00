"""What a model lets us point at: named groups of nodes, and the linear maps between them.

Knows names and sizes. Does not know tensors, weights, modules (only their dotted paths, as text), tasks or circuits.

    site   a named group of nodes, e.g. "block0.mlp.act": one node is one neuron or channel
    link   a linear map from one site to another; one edge is one node-to-node entry of it
           kind "weight": a matrix, edges[dst, src]; of a convolution, an edge is a kernel with all its weights
           kind "sum":    the residual stream, channel c of the source to channel c of the reader, edges[c]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from openwork.errors import several, unknown


@dataclass(frozen=True)
class Site:
    """A named group of nodes.

    name      what people and files call it, e.g. "block0.attn.q"
    size      number of nodes
    module    dotted path of the submodule whose output is what the nodes send ("" for the input itself)
    kind      input, embed, table, read, query, key, value, neuron, write or output: its role, for drawing and counting
    layer     depth in the drawing, counted from the input
    prunable  whether discovery may drop its nodes
    axis      which axis of the activation counts the nodes (-1 for vectors, 1 for images [B, C, H, W])
    steers    name of the site whose mixing over positions these nodes decide without being read by an edge
              (queries and keys steer values); "" if none
    group     with `steers`: how many nodes belong together (channels of one head); node i steers nodes of its group
    width     where every node sends a vector (a head, an MLP), how long that is; 0 where nodes send numbers
    """

    name: str
    size: int
    module: str
    kind: str
    layer: int
    prunable: bool = True
    axis: int = -1
    steers: str = ""
    group: int = 0
    width: int = 0


@dataclass(frozen=True)
class Link:
    """A linear map from one site to another.

    name     the name of the link, e.g. "block0.mlp.act>block0.mlp.write"
    module   dotted path of the submodule that does the map (kind "weight"), or that reads the sum (kind "sum")
    shape    (dst, src) for kind "weight"; (n,) for kind "sum"
    counts   the account in which its edges are counted: "block", "embedding", "unembedding" or "residual"
    through  dotted path of the submodule between the source and the map that mixes positions but not nodes
             (attention's weighted average between the value channels and the output matrix); "" if there is none
    """

    name: str
    src: str
    dst: str
    module: str
    shape: tuple[int, ...]
    kind: str = "weight"
    counts: str = "block"
    through: str = ""


@dataclass(frozen=True)
class Graph:
    """The sites and links of a model, in the order in which they are computed.

    UsageError, with all that is wrong, where names repeat, and where a link joins no sites of it or points backwards.
    """

    sites: tuple[Site, ...]
    links: tuple[Link, ...]

    def __post_init__(self) -> None:
        order = {s.name: i for i, s in enumerate(self.sites)}
        problems = [
            f'two {what} share the name "{n}".'
            for what, names in (("sites", [s.name for s in self.sites]), ("links", [e.name for e in self.links]))
            for n, times in Counter(names).items()
            if times > 1
        ]
        for e in self.links:
            lost = [n for n in (e.src, e.dst) if n not in order]
            if lost:
                problems.append(f"link {e.name} joins {' and '.join(lost)}; there is no such site.")
            elif order[e.src] >= order[e.dst]:
                problems.append(f"link {e.name} points backwards: {e.dst} stands before {e.src} among the sites.")
        if problems:
            raise several("the graph", problems)

    @cached_property
    def by_site(self) -> dict[str, Site]:
        """Sites by name."""
        return {s.name: s for s in self.sites}

    @cached_property
    def by_link(self) -> dict[str, Link]:
        """Links by name."""
        return {e.name: e for e in self.links}

    def site(self, name: str) -> Site:
        """The site of that name; refuses with the nearest one."""
        if name not in self.by_site:
            raise unknown("site", name, self.by_site)
        return self.by_site[name]

    def link(self, name: str) -> Link:
        """The link of that name; refuses with the nearest one."""
        if name not in self.by_link:
            raise unknown("link", name, self.by_link)
        return self.by_link[name]

    @cached_property
    def prunable(self) -> tuple[Site, ...]:
        """The sites whose nodes discovery may drop."""
        return tuple(s for s in self.sites if s.prunable)

    def into(self, site: str) -> tuple[Link, ...]:
        """Links that end at a site."""
        return tuple(e for e in self.links if e.dst == site)

    def out_of(self, site: str) -> tuple[Link, ...]:
        """Links that start at a site."""
        return tuple(e for e in self.links if e.src == site)

    def groups(self, pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, ...], ...]:
        """All sites by name, those together that such pairs join, directly or by way of others; in the sites' order."""
        of = {s.name: {s.name} for s in self.sites}
        for a, b in pairs:
            both = of[a] | of[b]
            of.update(dict.fromkeys(both, both))
        return tuple(dict.fromkeys(tuple(s.name for s in self.sites if s.name in of[t.name]) for t in self.sites))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "sites": [vars(s) for s in self.sites],
            "links": [{**vars(e), "shape": list(e.shape)} for e in self.links],
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Graph:
        """The inverse of `to_dict`."""
        return Graph(
            tuple(Site(**s) for s in data["sites"]),
            tuple(Link(**{**e, "shape": tuple(e["shape"])}) for e in data["links"]),
        )
