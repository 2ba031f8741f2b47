"""Heads that tell an attribute's value from its embedding, by cosines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import nn
from .._asen import Tensor
from ..nn import functional as F
from ..nn import init

__all__ = ["CosineHeads"]


class CosineHeads(nn.Module):
    """One normalised linear classifier for each attribute, over embeddings of `embed_size` numbers (Zhai and Wu 2019).

    sizes: the number of values of each attribute. All rows stand in one parameter, `weight` (sum of sizes, embed_size),
    attribute after attribute, U(±√(6 / (sum of sizes + embed_size))) at first.
    """

    def __init__(self, sizes: Sequence[int], embed_size: int):
        super().__init__()
        self.sizes = tuple(int(size) for size in sizes)
        self.weight = nn.Parameter(np.zeros((sum(self.sizes), embed_size), np.float32))
        init.xavier_uniform_(self.weight)

    def rows(self, attribute: int) -> Tensor:
        """The rows of an attribute, (values, embed_size): a view of `weight`."""
        first = sum(self.sizes[:attribute])
        return self.weight[first:first + self.sizes[attribute]]

    def forward(self, embeddings: Tensor, attribute: int) -> Tensor:
        """Cosines of embeddings (N, embed_size) of one attribute with the rows of its values: (N, values)."""
        return F.linear(F.normalize(embeddings), F.normalize(self.rows(attribute)))
