"""A model's weights as one undirected weighted graph: its modules, and how separate they are.

Two nodes are joined by the size of the weight between them, |w|; of a convolution by the sum of |w| over its kernel.
What acts as one is one node of this graph, and so gets one label:

* residual channels: sites joined by links of kind "sum" hold the same channels, so channel c of the stream is one node;
* heads: query and key channels decide where all value channels of their head look, so a head is one node.

Inputs, outputs and tables added to outputs are ports: every module may use them, they have no label, and edges to them
count nowhere. Embedding matrices join a port to the stream, so they do not count either; the stream's channels do.
Norms are not edges: their gain acts channel by channel, but their root mean square is shared by all modules.

    partition   which module every node of a site belongs to: site -> int64 [size]
    B [k, k]    weight between modules, sum of a_uv over u in c and v in d; an edge inside counts twice, so that
                vol_c = sum_d B_cd is the summed degree of c
    n-cut       sum_c (vol_c - B_cc) / vol_c, from 0 (nothing crosses) to k (Shi and Malik 2000; for networks Filan et
                al. 2021, arXiv 2103.03386)
    C           sum of squared weights inside modules / sum of all squared weights of a matrix (Golechha et al. 2025,
                arXiv 2502.02470); by chance sum_c |U_c| |V_c| / (|U| |V|), about 1/k
    Q           (1/2m) sum_uv (A_uv - d_u d_v / 2m) [same module] (Newman and Girvan 2004)

None of these says that a model works with its cross-module weights deleted: delete them and measure (`without`). C
above all can be high while the few weights that cross carry what matters. All three mean little without the same
measure on shuffled weights (`against_shuffles`, `measured`), for a partition that was fitted to noise looks modular
too.

Departures: the published C clusters the rows and the columns of a matrix apart and pairs the clusters by their number,
so that a block-diagonal matrix may score no better than chance; here both sides are clustered together (Dhillon 2001).
The spectral partition is regularised (see `spectral`).

Knows weights as a graph. Does not know training, data or losses.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg, sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from openwork.errors import UsageError
from openwork.graph import Graph, Link
from openwork.patching import weight_of

PORTS = frozenset({"input", "output", "table"})  # kinds of site that all modules share
SMALL = 200  # nodes up to which the dense solver is faster
REGULAR = 0.1  # weight that `spectral` adds to every node, in mean degrees
STARTS = 4  # random starts of k-means beside the one that needs no chance
MOST = 12  # modules that `eigengap` considers

Partition = Mapping[str, Tensor]  # site -> module of each node, int64 [size]
Labels = NDArray[np.int64]  # module of each node of the weight graph, [count]
Floats = NDArray[np.float64]


# -- the graph ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wiring:
    """Which nodes of a model's sites are which node of its weight graph.

    node_of  site -> node of the weight graph, int64 [size]; left out are ports, and sites that only ports touch
    groups   how many nodes each run of sites that share their nodes adds, in order: their sum is `count`
    links    the matrices both of whose ends have labels
    """

    node_of: Mapping[str, Tensor]
    groups: tuple[int, ...]
    links: tuple[Link, ...]

    @property
    def count(self) -> int:
        """Nodes of the weight graph."""
        return sum(self.groups)

    def partition(self, labels: Labels | Tensor) -> dict[str, Tensor]:
        """Labels [count] of the weight graph's nodes as a partition of the sites."""
        of = torch.as_tensor(labels, dtype=torch.int64, device="cpu")
        return {site: of[nodes] for site, nodes in self.node_of.items()}

    def labels(self, partition: Partition) -> Labels:
        """The inverse of `partition`."""
        of = np.zeros(self.count, dtype=np.int64)
        for site, nodes in self.node_of.items():
            of[nodes.numpy()] = partition[site].cpu().numpy()
        return of


def wiring(graph: Graph) -> Wiring:
    """The weight graph's nodes. UsageError where no matrix joins two sites that are not ports."""
    family = {s.name: s.name for s in graph.sites}  # site -> the first site of those that share its nodes

    def first(name: str) -> str:
        while family[name] != name:
            name = family[name]
        return name

    same = [(e.src, e.dst) for e in graph.links if e.kind == "sum"]
    same += [(s.steers, s.name) for s in graph.sites if s.steers]
    for a, b in same:
        family[first(b)] = first(a)
    width = {s.name: 1 for s in graph.sites}  # channels that are one node
    for s in (s for s in graph.sites if s.steers):
        width[s.name] = width[s.steers] = s.group
    ports = {first(s.name) for s in graph.sites if s.kind in PORTS}
    inner = [e for e in graph.links if e.kind == "weight" and not {first(e.src), first(e.dst)} & ports]
    if not inner:
        raise UsageError(
            "no matrix joins two sites that modules could share out: inputs and outputs are open to every module, so "
            "modules need two hidden layers at least."
        )
    used = {first(end) for e in inner for end in (e.src, e.dst)}
    begins: dict[str, int] = {}
    groups: list[int] = []
    node_of: dict[str, Tensor] = {}
    for s in graph.sites:
        of, count = first(s.name), -(-s.size // width[s.name])
        if of not in used:
            continue
        if of not in begins:
            begins[of] = sum(groups)
            groups.append(count)
        elif groups[list(begins).index(of)] != count:
            raise UsageError(f"{s.name} has {count} nodes, but a site that shares them has another number.")
        node_of[s.name] = begins[of] + torch.arange(s.size) // width[s.name]
    return Wiring(node_of, tuple(groups), tuple(inner))


def weights(model: nn.Module, of: Wiring) -> dict[str, Tensor]:
    """The weights between labelled nodes, link -> [dst, src, ...], with their gradient."""
    return {e.name: weight_of(model.get_submodule(e.module)) for e in of.links}


def size(weight: Tensor) -> Tensor:
    """|w| [dst, src] of a weight [dst, src, ...]: summed over a kernel."""
    return weight.abs().flatten(2).sum(-1) if weight.dim() > 2 else weight.abs()


def adjacency(of: Wiring, sizes: Mapping[str, Tensor]) -> sparse.csr_array:
    """The weight graph [count, count], symmetric, float64; zeros are no edges. `sizes`: link -> [dst, src]."""
    rows, columns, values = [], [], []
    for e in of.links:
        matrix = sizes[e.name].detach().cpu().double().numpy()
        dst, src = np.nonzero(matrix)
        rows.append(of.node_of[e.dst].numpy()[dst])
        columns.append(of.node_of[e.src].numpy()[src])
        values.append(matrix[dst, src])
    at = (np.concatenate(rows), np.concatenate(columns))
    half = sparse.coo_array((np.concatenate(values), at), shape=(of.count, of.count)).tocsr()
    return (half + half.T).tocsr()


# -- partitions --------------------------------------------------------------------------------------------------------


def blocks(of: Wiring, k: int) -> Labels:
    """Every group of nodes cut into k contiguous blocks, as equal as can be: node i of n is in module i k // n."""
    return np.concatenate([np.arange(n) * k // n for n in of.groups]).astype(np.int64)


def spectral(graph: sparse.csr_array | Floats, k: int, seed: int = 0) -> Labels:
    """k modules with a small normalised cut, [n]: eigenvectors, rows of length 1, k-means (Ng, Jordan, Weiss 2001).

    graph   adjacency [n, n], symmetric, not negative

    On a bipartite graph this is joint co-clustering of rows and columns. Every node first gets REGULAR mean degrees of
    weight, spread over all nodes (regularised spectral clustering: Amini et al. 2013; Zhang and Rohe 2018). Without
    it, modules that nothing joins share the eigenvalue 1, of whose eigenvectors a Lanczos solver need not find all;
    and a stray pair of nodes would count as a perfect module. Of several k-means starts, of which one needs no chance
    (Damle, Minden, Ying 2019), the one with the smallest n-cut is taken. Same seed, same labels.

    Modules are numbered in the order of their first nodes. Nodes without an edge go one by one to whichever module is
    smallest. UsageError where there are fewer nodes than k.
    """
    a = sparse.csr_array(graph, dtype=np.float64)
    degree = np.asarray(a.sum(axis=1)).ravel()
    joined = np.flatnonzero(degree > 0)
    if len(degree) < k:
        raise UsageError(f"{k} modules of {len(degree)} nodes: there must be a node for each.")
    labels = np.full(len(degree), -1, dtype=np.int64)
    if len(joined) <= k:
        labels[joined] = np.arange(len(joined))
    else:
        part = a[joined][:, joined]
        vectors = _leading(part, k, seed)[1]
        rows = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        rng = np.random.default_rng(seed)
        starts = [_without_chance(vectors, rows), *(_spread(rows, k, rng) for _ in range(STARTS))]
        found = [_k_means(rows, centres) for centres in starts]
        best = min(found, key=lambda of: ncut(_contraction(part, of, k)))
        _, begins, best = np.unique(best, return_index=True, return_inverse=True)
        labels[joined] = begins.argsort().argsort()[best]  # named in the order of their first nodes: starts may tie
    counts = np.bincount(labels[labels >= 0], minlength=k)
    for node in np.flatnonzero(labels < 0):
        labels[node] = counts.argmin()
        counts[labels[node]] += 1
    return labels


def eigengap(graph: sparse.csr_array | Floats, most: int = MOST, seed: int = 0) -> int:
    """How many modules a graph [n, n] has, 2 to `most`: the k with the largest gap between eigenvalues k and k + 1.

    Eigenvalues of the regularised D^-1/2 A D^-1/2, from the largest down (eigengap heuristic: von Luxburg 2007, section
    8.3). There is always an answer, also for noise: whether there are modules at all is for `measured` to say.
    UsageError where fewer than three nodes have edges.
    """
    a = sparse.csr_array(graph, dtype=np.float64)
    joined = np.flatnonzero(np.asarray(a.sum(axis=1)).ravel() > 0)
    if len(joined) < 3:
        raise UsageError(f"only {len(joined)} hidden nodes have edges between them: too few for modules.")
    most = min(most, len(joined) - 1)
    values = np.sort(_leading(a[joined][:, joined], most + 1, seed)[0])[::-1]
    return int((values[1:-1] - values[2:]).argmax()) + 2


def dealt(of: Wiring, labels: Labels, rng: np.random.Generator) -> Labels:
    """A random partition of the same sizes, in every group of nodes by itself: its labels in random order."""
    ends = np.cumsum((0, *of.groups))
    return np.concatenate([rng.permutation(labels[a:b]) for a, b in zip(ends, ends[1:], strict=False)])


def matched(labels: Labels, before: Labels, k: int) -> Labels:
    """The same modules, renamed so that most nodes keep the name they had before (Hungarian method)."""
    overlap = np.zeros((k, k), dtype=np.int64)
    np.add.at(overlap, (labels, before), 1)
    _, name = linear_sum_assignment(overlap, maximize=True)
    return name[labels].astype(np.int64)


def _leading(a: sparse.csr_array, k: int, seed: int) -> tuple[Floats, Floats]:
    """The k leading eigenvalues [k], ascending, and eigenvectors [n, k] of the regularised D^-1/2 A D^-1/2."""
    degree = np.asarray(a.sum(axis=1)).ravel()
    n = len(degree)
    added = REGULAR * degree.mean()
    scale: Floats = 1 / np.sqrt(degree + added)
    if n <= SMALL or k >= n - 1:
        dense = np.outer(scale, scale) * (a.toarray() + added / n)
        return linalg.eigh(dense, subset_by_index=(n - k, n - 1))
    scaled = sparse.csr_array(a.multiply(scale[:, None]).multiply(scale))

    def times(x: Floats) -> Floats:
        x = x.ravel()
        return scaled @ x + scale * (added / n * (scale @ x))

    begin = np.random.default_rng(seed).normal(size=n)
    operator = LinearOperator((n, n), matvec=times, dtype=np.float64)  # type: ignore[call-arg]
    return eigsh(operator, k, which="LA", tol=1e-4, v0=begin)  # type: ignore[arg-type]


def _without_chance(vectors: Floats, rows: Floats) -> Floats:
    """Centres [k, k] of the rows, grouped by the directions to which pivoted QR rotates the eigenvectors.

    QR takes the longest row first, so it must not see rows of length 1: rounding would decide.
    """
    pivots: Labels = linalg.qr(vectors.T, pivoting=True, mode="economic")[2]  # type: ignore[misc]
    first = pivots[: vectors.shape[1]]
    u, _, v = linalg.svd(vectors[first].T)
    near = np.abs(vectors @ (u @ v)).argmax(1)
    return np.stack([rows[near == c].mean(0) if (near == c).any() else rows[p] for c, p in enumerate(first)])


def _spread(rows: Floats, k: int, rng: np.random.Generator) -> Floats:
    """Centres [k, d] far from each other (k-means++: Arthur and Vassilvitskii 2007)."""
    centres = [rows[rng.integers(len(rows))]]
    far = ((rows - centres[0]) ** 2).sum(1)
    for _ in range(k - 1):
        total = far.sum()
        centres.append(rows[rng.choice(len(rows), p=far / total if total > 0 else None)])
        far = np.minimum(far, ((rows - centres[-1]) ** 2).sum(1))
    return np.stack(centres)


def _k_means(rows: Floats, centres: Floats, rounds: int = 100) -> Labels:
    """Nearest centres until they stay; an empty module takes the row that is furthest from its centre."""
    k = len(centres)
    labels = np.full(len(rows), -1, dtype=np.int64)
    for _ in range(rounds):
        away = (centres**2).sum(1) - 2 * rows @ centres.T  # + |row|^2, the same for all centres
        now = away.argmin(1).astype(np.int64)
        loss = away[np.arange(len(rows)), now] + (rows**2).sum(1)
        counts = np.bincount(now, minlength=k)
        for empty in np.flatnonzero(counts == 0):
            far = np.where(counts[now] > 1, loss, -np.inf).argmax()
            counts[now[far]] -= 1
            counts[empty] += 1
            now[far], loss[far] = empty, -np.inf
        if (now == labels).all():
            break
        labels = now
        centres = np.stack([np.bincount(labels, column, k) for column in rows.T], 1) / counts[:, None]
    return labels


# -- measures ----------------------------------------------------------------------------------------------------------


def contraction(of: Wiring, sizes: Mapping[str, Tensor], partition: Partition, k: int) -> Tensor:
    """B [k, k], the weight between modules, with the gradient of `sizes` (link -> [dst, src])."""
    total: Tensor | None = None
    for e in of.links:
        matrix = sizes[e.name]
        ends = [nn.functional.one_hot(partition[end].to(matrix.device), k).to(matrix.dtype) for end in (e.dst, e.src)]
        between = ends[0].T @ matrix @ ends[1]
        between = between + between.T
        total = between if total is None else total + between
    assert total is not None
    return total


def _contraction(a: sparse.csr_array, labels: Labels, k: int) -> Floats:
    """The same from an adjacency [n, n] and labels [n]."""
    member = sparse.csr_array((np.ones(len(labels)), (np.arange(len(labels)), labels)), shape=(len(labels), k))
    return (member.T @ a @ member).toarray()


def ncut(between: Tensor | Floats) -> Any:
    """sum_c (vol_c - B_cc) / vol_c of B [k, k]; a module without weight adds nothing. Of the type of its argument."""
    volume = between.sum(1)
    crossing = volume - between.diagonal()
    return (crossing / (volume + (volume == 0))).sum()


def clusterability(weight: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """C of one weight [dst, src, ...]: share of its squares that lie inside modules, with its gradient; 0/0 is 0.

    rows, columns   modules of its two ends, int64 [dst] and [src]
    """
    squares = weight.pow(2).flatten(2).sum(-1) if weight.dim() > 2 else weight.pow(2)
    total = squares.sum()
    return (squares * ~crossing(rows, columns).to(squares.device)).sum() / (total + (total == 0))


def mean_clusterability(of: Wiring, weights_: Mapping[str, Tensor], partition: Partition) -> Tensor:
    """The mean of C over all matrices between labelled nodes."""
    each = [clusterability(weights_[e.name], partition[e.dst], partition[e.src]) for e in of.links]
    return torch.stack(each).mean()


def chance(rows: Tensor, columns: Tensor) -> float:
    """C that a matrix of independent equal weights would have: sum_c |U_c| |V_c| / (|U| |V|)."""
    k = int(max(rows.max(), columns.max())) + 1
    shares = [torch.bincount(x.cpu(), minlength=k).double() / len(x) for x in (rows, columns)]
    return float((shares[0] * shares[1]).sum())


def crossing(rows: Tensor, columns: Tensor) -> Tensor:
    """Which entries of a matrix join two modules: bool [dst, src]."""
    return rows[:, None] != columns


def modularity(graph: sparse.csr_array | Floats, labels: Labels) -> float:
    """Newman's Q of an adjacency [n, n]; report it only beside that of shuffled weights."""
    k = int(labels.max()) + 1
    between = _contraction(sparse.csr_array(graph, dtype=np.float64), labels, k)
    volume = between.sum(1)
    total = volume.sum()
    return float(np.trace(between) / total - ((volume / total) ** 2).sum()) if total > 0 else 0.0


@dataclass(frozen=True)
class Edge:
    """One edge between modules: `src` and `dst` are node numbers within the sites of its link, `weight` is |w|."""

    link: str
    src: int
    dst: int
    modules: tuple[int, int]  # of src and dst
    weight: float


def interface(of: Wiring, sizes: Mapping[str, Tensor], partition: Partition, most: int | None = None) -> list[Edge]:
    """The edges that join two modules, the heaviest first: all, or the `most` heaviest, without listing the others."""
    edges = []
    for e in of.links:
        rows, columns = partition[e.dst].cpu(), partition[e.src].cpu()
        matrix = sizes[e.name].detach().cpu() * crossing(rows, columns)
        at = matrix.flatten().nonzero().flatten()
        if most is not None and len(at) > most:
            at = matrix.flatten().topk(most).indices.sort().values
        for place in at.tolist():
            dst, src = divmod(place, matrix.shape[1])
            ends = (int(columns[src]), int(rows[dst]))
            edges.append(Edge(e.name, src, dst, ends, float(matrix[dst, src])))
    return sorted(edges, key=lambda edge: -edge.weight)[:most]


def cross_edges(of: Wiring, sizes: Mapping[str, Tensor], partition: Partition) -> int:
    """How many edges join two modules, without listing them."""
    return sum(
        int(
            (
                sizes[e.name].detach() * crossing(partition[e.dst], partition[e.src]).to(sizes[e.name].device)
            ).count_nonzero()
        )
        for e in of.links
    )


@torch.no_grad()
def without(model: nn.Module, of: Wiring, gone: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model without some of its edges: their weights are 0.

    gone  link -> bool [dst, src]; of a convolution, whole kernels
    """
    less = copy.deepcopy(model)
    for e in of.links:
        weight = weight_of(less.get_submodule(e.module))
        mask = gone[e.name].to(weight.device)
        weight.masked_fill_(mask.view(*mask.shape, *[1] * (weight.dim() - 2)), 0)
    return less


def all_crossing(of: Wiring, partition: Partition) -> dict[str, Tensor]:
    """Which entries of every matrix join two modules, link -> bool [dst, src]: for `without`."""
    return {e.name: crossing(partition[e.dst], partition[e.src]) for e in of.links}


# -- against chance ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Against:
    """A measure beside what it is on shuffled weights.

    value         of the weights as they are
    mean, spread  over the shuffles; z = (value - mean) / spread
    """

    value: float
    mean: float
    spread: float

    @property
    def z(self) -> float:
        """Spreads between the weights and their shuffles; below 0 where the value is smaller."""
        return (self.value - self.mean) / self.spread if self.spread > 0 else float("nan")


def against_shuffles(
    of: Wiring,
    sizes: Mapping[str, Tensor],
    k: int,
    measure: Literal["ncut", "modularity"] = "ncut",
    null: Literal["values", "positions"] = "values",
    shuffles: int = 50,
    seed: int = 0,
) -> Against:
    """A measure of the spectral partition, beside that of weights shuffled within each matrix and partitioned anew.

    sizes  link -> [dst, src], as from `size`: a kernel moves as a whole
    null   "values": the nonzero weights of a matrix change places among themselves, its zeros stay; "positions": all
           entries do, zeros too (Filan et al. 2021, with 50 shuffles). For sparse models "positions" mostly says that
           their zeros are not random, while "values" is blind to modules that consist in where the zeros are.
    """
    judge: Callable[[sparse.csr_array, Labels], float] = (
        modularity if measure == "modularity" else lambda a, labels: float(ncut(_contraction(a, labels, k)))
    )

    def value(now: Mapping[str, Tensor]) -> float:
        a = adjacency(of, now)
        return judge(a, spectral(a, k, seed))

    rng = np.random.default_rng(seed)
    plain = {e.name: sizes[e.name].detach().cpu() for e in of.links}
    found = [value({n: _shuffled(m, null, rng) for n, m in plain.items()}) for _ in range(shuffles)]
    return _against(value(plain), found)


MEASURES = ("clusterability", "ncut", "modularity")


def measures(of: Wiring, weights_: Mapping[str, Tensor], labels: Labels) -> dict[str, float]:
    """C (mean over matrices), n-cut and Q of one partition, by the names of MEASURES."""
    k = int(labels.max()) + 1
    graph = adjacency(of, {name: size(w.detach()) for name, w in weights_.items()})
    return {
        "clusterability": float(mean_clusterability(of, weights_, of.partition(labels)).detach()),
        "ncut": float(ncut(_contraction(graph, labels, k))),
        "modularity": modularity(graph, labels),
    }


def expected(of: Wiring, labels: Labels) -> dict[str, float]:
    """What MEASURES come to where modules mean nothing, every weight being as large as every other of its matrix.

    C: mean of `chance` over matrices. n-cut: k - 1, for a module's share of what any node is joined to is its share
    of all volume, and 1 minus these shares sum to k - 1. Q: 0. The last two hold on average over partitions.
    """
    partition, k = of.partition(labels), int(labels.max()) + 1
    by_matrix = [chance(partition[e.dst], partition[e.src]) for e in of.links]
    return {"clusterability": float(np.mean(by_matrix)), "ncut": float(k - 1), "modularity": 0.0}


def measured(
    of: Wiring,
    weights_: Mapping[str, Tensor],
    labels: Labels,
    again: Callable[[sparse.csr_array], Labels],
    null: Literal["values", "positions"] = "values",
    shuffles: int = 50,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Against]:
    """MEASURES of a partition, each beside what it is on shuffled weights that were partitioned `again`.

    weights_  link -> [dst, src, ...]; a kernel moves as a whole
    again     the partition of a shuffled weight graph: for one that was fitted to the weights, `spectral`; for one that
              was not, itself
    null      see `against_shuffles`
    tick      called after every shuffle
    """
    plain = {e.name: weights_[e.name].detach().cpu() for e in of.links}
    rng = np.random.default_rng(seed)
    found: list[dict[str, float]] = []
    for _ in range(shuffles):
        now = {name: _shuffled(w, null, rng) for name, w in plain.items()}
        found.append(measures(of, now, again(adjacency(of, {name: size(w) for name, w in now.items()}))))
        tick()
    own = measures(of, plain, labels)
    return {m: _against(own[m], [f[m] for f in found]) for m in MEASURES}


def _against(value: float, found: list[float]) -> Against:
    return Against(value, float(np.mean(found)), float(np.std(found, ddof=1)) if len(found) > 1 else 0.0)


def _shuffled(weight: Tensor, null: str, rng: np.random.Generator) -> Tensor:
    """A weight [dst, src, ...] with its edges in random order, see `against_shuffles`."""
    flat = weight.numpy().reshape(weight.shape[0] * weight.shape[1], -1).copy()
    at = np.flatnonzero(flat.any(1)) if null == "values" else np.arange(len(flat))
    flat[at] = flat[rng.permutation(at)]
    return torch.from_numpy(flat).view(weight.shape)
