"""Models: ASEN++, its style classifiers, and their backbones."""

from __future__ import annotations

from typing import Any

from .asen import ASEN
from .attention import AttributeAttention, AttributeEmbedding
from .pretrained import PretrainedError, load_pretrained
from .resnet import ResNet, resnet18, resnet34, resnet50
from .style import ArcMarginHead, ArcStyleClassification, StyleClassification, StyleFeatures

__all__ = ["ASEN", "StyleClassification", "ArcStyleClassification", "ArcMarginHead", "StyleFeatures",
           "AttributeAttention", "AttributeEmbedding", "ResNet", "resnet18", "resnet34", "resnet50", "build_model",
           "load_pretrained", "PretrainedError"]

_TYPES = {"ASEN": ASEN, "StyleClassification": StyleClassification, "ArcStyleClassification": ArcStyleClassification}


def build_model(cfg: Any, pretrained: bool = True) -> Any:
    """The model of a configuration (MODEL.TYPE), on the CPU, in training mode.

    pretrained: False leaves out the ImageNet weights that MODEL.PRETRAINED asks for: for a model that
        a checkpoint will fill.

    Raises PretrainedError where the weights cannot be had.
    """
    model = _TYPES[cfg.MODEL.TYPE](cfg)
    wanted = cfg.MODEL.PRETRAINED if pretrained else False
    for branch, modules in model.choices.items():
        group = branch.upper()
        source = wanted.get(group, True) if hasattr(wanted, "get") else wanted
        if source:
            load_pretrained(modules["basenet"], cfg.MODEL[group].BACKBONE.NAME, source)
    return model
