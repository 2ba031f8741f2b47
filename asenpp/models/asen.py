"""ASEN++: one embedding of an image for each attribute (Ma et al. 2020; Dong et al. 2021).

Two branches of the same build: the global one looks at the whole image, the local one at the crop
that the global one's attention map points out. They share the table of attribute vectors, which the
state dict therefore holds under both names.
"""

from __future__ import annotations

from typing import Any

from .. import nn
from .._asen import Tensor
from .attention import AttributeAttention, AttributeEmbedding
from .heads import CosineHeads
from .resnet import LAYER3_WIDTH, backbone

__all__ = ["ASEN"]


class ASEN(nn.Module):
    """The embedding network of a configuration.

    cfg: see asenpp.load_config; MODEL.LOCAL.ENABLE decides whether there is a local branch.
    layer4: the backbones have a fourth stage (style models).

    All methods take images as (B, 3, H, W) and attributes as B row numbers of the attribute table
    (ints: a tensor, an array or a list). branch: "global" or "local". groups: the batch is that many
    passes in one, with batch statistics of their own.
    """

    def __init__(self, cfg: Any, layer4: bool = False):
        super().__init__()
        count = cfg.DATA.NUM_ATTRIBUTES
        if count < 1:
            raise ValueError("DATA.NUM_ATTRIBUTES is not set: the model needs a row for each attribute "
                             "(it follows DATA.ATTRIBUTES.NAME)")
        attrnet = AttributeEmbedding(count, cfg.MODEL.ATTRIBUTE.EMBED_SIZE)
        self.choices = nn.ModuleDict({"global": self._make_branch(cfg, cfg.MODEL.GLOBAL, attrnet, layer4)})
        if cfg.MODEL.LOCAL.ENABLE:
            self.choices["local"] = self._make_branch(cfg, cfg.MODEL.LOCAL, attrnet, layer4)
        if cfg.SOLVER.LOSS == "cosine":
            # Last, so that all else starts alike whatever the loss is.
            self.heads = self._make_heads(cfg, count)
            self.scale, self.beta = cfg.SOLVER.SCALE, cfg.SOLVER.BETA

    @staticmethod
    def _make_branch(cfg: Any, branch: Any, attrnet: AttributeEmbedding, layer4: bool) -> nn.ModuleDict:
        name, attention = branch.BACKBONE.NAME, branch.ATTENTION
        return nn.ModuleDict({
            "attrnet": attrnet,
            "basenet": backbone(name, layer4),
            "attnnet": AttributeAttention(
                cfg.MODEL.ATTRIBUTE.EMBED_SIZE, LAYER3_WIDTH[name], attention.SPATIAL.COMMON_EMBED_SIZE,
                attention.CHANNEL.REDUCTION_RATE, cfg.MODEL.EMBED_SIZE, attention.SPATIAL.ENABLE,
                attention.CHANNEL.ENABLE),
        })

    def _make_heads(self, cfg: Any, count: int) -> nn.ModuleDict:
        sizes = cfg.DATA.ATTRIBUTES.NUM
        if len(sizes) != count:
            raise ValueError(f"DATA.ATTRIBUTES.NUM has {len(sizes)} entries, but the model {count} attributes: the heads of "
                             "SOLVER.LOSS cosine need the number of values of each")
        return nn.ModuleDict({branch: CosineHeads(sizes, cfg.MODEL.EMBED_SIZE) for branch in self.choices})

    @property
    def has_local(self) -> bool:
        """Whether there is a local branch."""
        return "local" in self.choices

    @property
    def has_heads(self) -> bool:
        """Whether there are heads that tell the value of an attribute (SOLVER.LOSS cosine)."""
        return "heads" in self._modules

    def backbone(self, images: Tensor, branch: str = "global", groups: int = 1) -> Tensor:
        """The feature map of the images, (B, C, H/16, W/16): once an image, whatever its attributes."""
        return self.choices[branch]["basenet"](images, groups)

    def keys(self, features: Tensor, branch: str = "global") -> Tensor | None:
        """What attend() makes of feature maps whatever the attribute is, (B, Cc, H, W): to be given to it where several
        attributes are asked of the same images. None without spatial attention."""
        return self.choices[branch]["attnnet"].keys(features)

    def attend(self, features: Tensor, attributes: Any, branch: str = "global",
               keys: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Embedding (B, EMBED_SIZE) and attention map (B, H, W) of feature maps; no map without
        spatial attention."""
        part = self.choices[branch]
        return part["attnnet"](features, part["attrnet"](attributes), keys)

    def classify(self, whole: Tensor, attribute: int, local: Tensor | None = None) -> Tensor:
        """Logits (N, values) of embeddings (N, EMBED_SIZE) of one attribute: SCALE times the cosine with the row of
        each value; with those of the local branch BETA * global + (1 - BETA) * local. Their softmax are probabilities.

        Raises ValueError where the model has no heads.
        """
        if not self.has_heads:
            raise ValueError("this model has no heads: SOLVER.LOSS cosine trains them")
        cosines = self.heads["global"](whole, attribute)
        if local is not None:
            cosines = cosines * self.beta + self.heads["local"](local, attribute) * (1 - self.beta)
        return cosines * self.scale

    def forward_branch(self, branch: str, images: Tensor, attributes: Any,
                       groups: int = 1) -> tuple[Tensor, Tensor | None]:
        """Embedding and attention map of images."""
        return self.attend(self.backbone(images, branch, groups), attributes, branch)

    def forward(self, images: Tensor, attributes: Any, level: str = "global",
                groups: int = 1) -> tuple[Tensor, Tensor | None]:
        """The published program's order of arguments: see forward_branch."""
        return self.forward_branch(level, images, attributes, groups)

    def parameter_groups(self, lr: float, lr_slow: float, head_factor: float = 1.0) -> list[dict[str, Any]]:
        """Groups for an optimizer (docs/reference.md 6)."""
        return parameter_groups(self, self, lr, lr_slow, head_factor)


def parameter_groups(model: nn.Module, asen: ASEN, lr: float, lr_slow: float,
                     head_factor: float = 1.0) -> list[dict[str, Any]]:
    """Groups for an optimizer: without a local branch one at `lr`; else backbone and attention of the
    local branch at `lr`, and everything else, classifiers and the shared table included, at `lr_slow`. Then the heads of
    each branch, at that branch's rate times `head_factor`."""
    local = [] if not asen.has_local else [
        p for part in ("basenet", "attnnet") for p in asen.choices["local"][part].parameters()]
    heads = {branch: list(head.parameters()) for branch, head in asen.heads.items()} if asen.has_heads else {}
    known = {id(p) for p in (*local, *(p for rows in heads.values() for p in rows))}
    rest = [p for p in model.parameters() if id(p) not in known]
    slow = lr_slow if asen.has_local else lr
    groups = [{"params": local, "lr": lr}] if local else []
    groups.append({"params": rest, "lr": slow})
    return groups + [{"params": rows, "lr": (lr if branch == "local" else slow) * head_factor}
                     for branch, rows in heads.items()]
