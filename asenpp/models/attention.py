"""The attribute-aware attention of ASEN++ (Ma et al. 2020; Dong et al. 2021)."""

from __future__ import annotations

from typing import Any

from .. import _asen, nn
from .._asen import Tensor
from ..amp import raised
from ..nn import functional as F

__all__ = ["AttributeEmbedding", "AttributeAttention"]


class AttributeEmbedding(nn.Module):
    """The table of attribute vectors, N(0, 1) at first: (count, size)."""

    def __init__(self, count: int, size: int):
        super().__init__()
        self.attr_embedding = nn.Embedding(count, size)

    def forward(self, attributes: Any) -> Tensor:
        return self.attr_embedding(attributes)


class AttributeAttention(nn.Module):
    """Pools a feature map as an attribute asks, where to look (spatial) and at what (channel).

    For x (B, C, H, W) and an attribute vector a (B, A):

        spatial:  k = tanh(conv1x1(x)), q = tanh(attr_transform1(a));
                  m = softmax over H W of sum_c q_c k_c / sqrt(Cc);  v = sum_hw m x
                  (without it: v is the global average, and there is no map)
        channel:  v = v * sigmoid(fc2(relu(fc1([v ; relu(attr_transform2(a))]))))
        output:   feature_fc(v), (B, embed_size); and m, (B, H, W), or None
    """

    def __init__(self, attr_size: int, channels: int, common_size: int, reduction_rate: int, embed_size: int,
                 spatial: bool = True, channel: bool = True):
        super().__init__()
        self.spatial, self.channel = spatial, channel
        if spatial:
            self.attr_transform1 = nn.Linear(attr_size, common_size)
            self.conv = nn.Conv2d(channels, common_size, 1)
        if channel:
            self.attr_transform2 = nn.Linear(attr_size, attr_size)
            self.fc1 = nn.Linear(channels + attr_size, channels // reduction_rate)
            self.fc2 = nn.Linear(channels // reduction_rate, channels)
        self.feature_fc = nn.Linear(channels, embed_size)

    def keys(self, x: Tensor) -> Tensor | None:
        """conv1x1(x), (B, Cc, H, W): what all attributes of an image share. None without spatial attention."""
        return raised(self.conv(x)) if self.spatial else None

    def forward(self, x: Tensor, a: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """keys: those of x, where they are at hand."""
        attention_map = None
        if self.spatial:
            z = self.keys(x) if keys is None else keys
            v, attention_map = F.spatial_attention(x, z, F.tanh(self.attr_transform1(a)))
        else:
            v = x.mean(dims=(2, 3))
        if self.channel:
            gate = F.relu(self.fc1(_asen.cat([v, F.relu(self.attr_transform2(a))], dim=1)))
            v = v * F.sigmoid(self.fc2(gate))
        return self.feature_fc(v), attention_map
