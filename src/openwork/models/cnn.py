"""A small convolutional network with ReLU, for images: blocks of convolution and max-pooling, then linear layers.

A node of a convolution is a channel with its whole map, after ReLU and pooling: what the next layer reads. An edge is
a kernel, channel to channel. A linear layer that reads maps is a convolution whose kernel is as large as the map (the
same weights, [dst, src, height, width]), so that an edge from a channel holds its weights at all positions, and
whoever knows convolutions needs to know no more.

The default is the shape of Caffe's LeNet-5 (LeCun et al. 1998, doi 10.1109/5.726791, as in Caffe's
examples/mnist/lenet_train_test.prototxt: 20 and 50 channels, 800 features, 500 units). Caffe's has a ReLU after the
500 units only; here every layer but the last has one.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from openwork.graph import Graph, Link, Site
from openwork.models.node import Node, share_of


class ConvBlock(BaseModel):
    """One convolution without padding, its ReLU, and max-pooling over windows of `pool` x `pool` (1: none)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: int = Field(ge=1)
    kernel: int = Field(default=5, ge=1)
    stride: int = Field(default=1, ge=1)
    pool: int = Field(default=1, ge=1)

    def side(self, length: int) -> int:
        """Positions along one side of the block's output, for an input of that length; 0 where nothing fits."""
        return ((length - self.kernel) // self.stride + 1) // self.pool if length >= self.kernel else 0


class CNNConfig(BaseModel):
    """Shape of a convolutional network; `image` is (channels, height, width). Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["cnn"] = "cnn"
    image: tuple[int, int, int] = (1, 28, 28)
    blocks: tuple[ConvBlock, ...] = (ConvBlock(channels=20, pool=2), ConvBlock(channels=50, pool=2))
    hidden: tuple[int, ...] = (500,)
    outputs: int = Field(10, ge=2)
    abstopk: float = Field(
        1.0, gt=0, le=1, description="share of channels and neurons that AbsTopK keeps per image; 1 is off"
    )

    @model_validator(mode="after")
    def _something_is_left_of_the_image(self) -> CNNConfig:
        if min(self.image) < 1 or min(self.hidden, default=1) < 1:
            raise ValueError(f"image {self.image}, hidden {self.hidden}: every size must be at least 1")
        maps = self.maps()
        for i, ((_, height, width), (_, *left)) in enumerate(zip(maps, maps[1:], strict=False)):
            if min(left) < 1:
                raise ValueError(f"block {i} does not fit the {height} x {width} positions that reach it")
        return self

    def maps(self) -> list[tuple[int, int, int]]:
        """(channels, height, width) of the image and of what each block sends."""
        out = [self.image]
        for b in self.blocks:
            _, height, width = out[-1]
            out.append((b.channels, b.side(height), b.side(width)))
        return out


class CNN(nn.Module):
    """Images [B, channels, height, width], or the same pixels flat [B, features], to logits [B, outputs]."""

    def __init__(self, config: CNNConfig) -> None:
        super().__init__()
        self.config = config
        maps = config.maps()
        sizes = [*config.hidden, config.outputs]
        channels, height, width = maps[-1]
        convolutions = [
            nn.Conv2d(src, b.channels, b.kernel, b.stride) for (src, _, _), b in zip(maps, config.blocks, strict=False)
        ]
        first = nn.Conv2d(channels, sizes[0], (height, width))
        linear = [nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
        self.layers = nn.ModuleList([*convolutions, first, *linear])
        sparse = [Node(share_of(b.channels, config.abstopk), maps=True) for b in config.blocks]
        sparse += [Node(share_of(n, config.abstopk)) for n in config.hidden]
        self.nodes = nn.ModuleList([Node(), *sparse, Node()])

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, outputs]."""
        x = self.nodes[0](x.reshape(len(x), *self.config.image))
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i < len(self.config.blocks):
                x = F.relu(x)
                pool = self.config.blocks[i].pool
                x = F.max_pool2d(x, pool) if pool > 1 else x
            else:
                x = x.flatten(1)  # the layer that reads maps leaves one position, [B, n, 1, 1]
                x = F.relu(x) if i < len(self.layers) - 1 else x
            x = self.nodes[i + 1](x)
        return x

    def graph(self) -> Graph:
        """One site per layer of nodes, channels on axis 1; one link per layer, [dst, src].

        The image's channels are not for discovery to drop, only the kernels that read them: there is one, or three, and
        without them any circuit is necessary, and so are the random nodes that it is compared with.
        """
        c = self.config
        n = len(self.layers)
        sites = [Site("input", c.image[0], "nodes.0", "input", 0, prunable=False, axis=1)]
        sites += [
            Site(f"conv{i}", b.channels, f"nodes.{i + 1}", "neuron", i + 1, axis=1) for i, b in enumerate(c.blocks)
        ]
        done = len(sites)
        sites += [Site(f"hidden{i}", s, f"nodes.{done + i}", "neuron", done + i) for i, s in enumerate(c.hidden)]
        sites.append(Site("logits", c.outputs, f"nodes.{n}", "output", n, prunable=False))
        links = [
            Link(f"{a.name}>{b.name}", a.name, b.name, f"layers.{i}", (b.size, a.size))
            for i, (a, b) in enumerate(zip(sites[:-1], sites[1:], strict=True))
        ]
        return Graph(tuple(sites), tuple(links))
