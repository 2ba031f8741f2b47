"""Style classifiers on top of ASEN, as in the published fork for KFashion and Fashion14k.

Both have ASEN's methods, and these: backbone() gives StyleFeatures, which attend() takes like a
feature map; forward_style() gives embedding, attention map and logits of images; logits() those of
an embedding; probabilities() is the softmax that inference reports.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import _asen, nn
from .._asen import Tensor
from ..nn import functional as F
from ..nn import init
from .asen import ASEN, parameter_groups
from .resnet import LAYER4_WIDTH

__all__ = ["StyleClassification", "ArcStyleClassification", "ArcMarginHead", "StyleFeatures"]


class StyleFeatures(NamedTuple):
    """What a style backbone gives: the feature map of layer3 (B, C, H, W), and the global average of
    layer4 (B, C4), or None in the local branch, where nothing uses it."""

    map: Tensor
    average: Tensor | None


class _StyleMixin(nn.Module):
    """The methods that both classifiers share; `embedder` is their ASEN."""

    needs_average = True
    has_heads = False       # of ASEN's kind

    @property
    def embedder(self) -> ASEN:
        raise NotImplementedError

    def backbone(self, images: Tensor, branch: str = "global", groups: int = 1) -> StyleFeatures:
        """Feature map of layer3 and average of layer4; images (B, 3, H, W)."""
        net = self.embedder.choices[branch]["basenet"]
        features = net(images, groups)
        average = net.layer4_average(features, groups) if self.needs_average and branch == "global" else None
        return StyleFeatures(features, average)

    def keys(self, features: StyleFeatures | Tensor, branch: str = "global") -> Tensor | None:
        """See ASEN.keys."""
        return ASEN.keys(self.embedder, features.map if isinstance(features, StyleFeatures) else features, branch)

    def attend(self, features: StyleFeatures | Tensor, attributes: Any, branch: str = "global",
               keys: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Embedding (B, EMBED_SIZE) and attention map (B, H, W)."""
        if isinstance(features, StyleFeatures):
            features = features.map
        return ASEN.attend(self.embedder, features, attributes, branch, keys)

    def forward_branch(self, branch: str, images: Tensor, attributes: Any,
                       groups: int = 1) -> tuple[Tensor, Tensor | None]:
        """Embedding and attention map of images; layer4 is left out (forward_style needs it)."""
        features = self.embedder.choices[branch]["basenet"](images, groups)
        return self.attend(features, attributes, branch)

    def forward_style(self, images: Tensor, attributes: Any, labels: Any = None,
                      groups: int = 1) -> tuple[Tensor, Tensor | None, Tensor]:
        """Embedding, attention map and logits (B, classes) of the global branch.

        labels: the style of each image (B ints), or None: see logits().
        """
        features = self.backbone(images, "global", groups)
        embedding, attention_map = self.attend(features, attributes)
        return embedding, attention_map, self.logits(embedding, features, labels)

    def forward(self, images: Tensor, attributes: Any, labels: Any = None,
                groups: int = 1) -> tuple[Tensor, Tensor | None, Tensor]:
        """See forward_style."""
        return self.forward_style(images, attributes, labels, groups)

    def logits(self, embedding: Tensor, features: StyleFeatures, labels: Any = None) -> Tensor:
        raise NotImplementedError

    def parameter_groups(self, lr: float, lr_slow: float, head_factor: float = 1.0) -> list[dict[str, Any]]:
        """Groups for an optimizer; the classifier's parameters are with the global ones."""
        return parameter_groups(self, self.embedder, lr, lr_slow, head_factor)


class StyleClassification(_StyleMixin, ASEN):
    """ASEN with two linear layers, EMBED_SIZE to 512 to HEAD.out_features, on the embedding."""

    needs_average = False

    def __init__(self, cfg: Any):
        ASEN.__init__(self, cfg, layer4=True)
        self.fc = nn.Sequential(nn.Linear(cfg.MODEL.EMBED_SIZE, 512), nn.Linear(512, cfg.HEAD.out_features))

    @property
    def embedder(self) -> ASEN:
        return self

    def logits(self, embedding: Tensor, features: StyleFeatures | None = None, labels: Any = None) -> Tensor:
        """Logits (B, classes) of embeddings; labels change nothing."""
        return self.fc(embedding)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax of logits made without labels: (B, classes)."""
        return F.softmax(logits, dim=1)


class ArcMarginHead(nn.Module):
    """Cosines to a row for each class, with an additive angular margin in training (Deng et al. 2019).

    weight (classes, features), Xavier uniform at first. forward(x (B, features), labels=None): without
    labels the cosines c; with them F.arc_margin(c, labels, s, m, easy_margin).
    """

    def __init__(self, in_features: int, out_features: int, s: float, m: float, easy_margin: bool = False):
        super().__init__()
        self.s, self.m, self.easy_margin = s, m, easy_margin
        self.weight = nn.Parameter(np.zeros((out_features, in_features), np.float32))
        init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor, labels: Any = None) -> Tensor:
        cosine = F.linear(F.normalize(x), F.normalize(self.weight))
        return cosine if labels is None else F.arc_margin(cosine, labels, self.s, self.m, self.easy_margin)


class ArcStyleClassification(_StyleMixin):
    """`body`, an ASEN, whose embedding is joined with 1024 numbers made from the average of layer4 and
    passed through linear layers to an ArcMarginHead."""

    def __init__(self, cfg: Any):
        super().__init__()
        self.body = ASEN(cfg, layer4=True)
        self.fc = nn.Linear(LAYER4_WIDTH[cfg.MODEL.GLOBAL.BACKBONE.NAME], 1024)
        self.fc1 = nn.Sequential(nn.Dropout(0.1), nn.Linear(cfg.MODEL.EMBED_SIZE + 1024, 1024),
                                 nn.Linear(1024, 1024), nn.Dropout(0.05), nn.Linear(1024, cfg.HEAD.in_features))
        self.head = ArcMarginHead(cfg.HEAD.in_features, cfg.HEAD.out_features, cfg.HEAD.s, cfg.HEAD.m,
                                  cfg.HEAD.easy_margin)

    @property
    def embedder(self) -> ASEN:
        return self.body

    @property
    def choices(self) -> nn.ModuleDict:
        return self.body.choices

    @property
    def has_local(self) -> bool:
        return self.body.has_local

    def logits(self, embedding: Tensor, features: StyleFeatures, labels: Any = None) -> Tensor:
        """With labels the scaled logits of training, without them the cosines: (B, classes)."""
        return self.head(self.fc1(_asen.cat([embedding, self.fc(features.average)], dim=1)), labels)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax of s times the cosines that logits() gives without labels: (B, classes)."""
        return F.softmax(logits * self.head.s, dim=1)
