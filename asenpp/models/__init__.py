"""Models: ASEN++, its style classifiers, and their backbones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .asen import ASEN
from .attention import AttributeAttention, AttributeEmbedding
from .heads import CosineHeads
from .pretrained import PretrainedError, load_pretrained, pretrained_file
from .resnet import ResNet, resnet18, resnet34, resnet50
from .style import ArcMarginHead, ArcStyleClassification, StyleClassification, StyleFeatures

__all__ = ["ASEN", "StyleClassification", "ArcStyleClassification", "ArcMarginHead", "StyleFeatures",
           "AttributeAttention", "AttributeEmbedding", "CosineHeads", "ResNet", "resnet18", "resnet34", "resnet50", "build_model",
           "load_pretrained", "pretrain", "PretrainedError"]

_TYPES = {"ASEN": ASEN, "StyleClassification": StyleClassification, "ArcStyleClassification": ArcStyleClassification}


def build_model(cfg: Any, pretrained: bool = True) -> Any:
    """The model of a configuration (MODEL.TYPE), on the CPU, in training mode.

    pretrained: False leaves out the ImageNet weights that MODEL.PRETRAINED asks for: for a model that
        a checkpoint will fill.

    Raises PretrainedError where the weights cannot be had.
    """
    model = _TYPES[cfg.MODEL.TYPE](cfg)
    if pretrained:
        pretrain(model, cfg, list(model.state_dict()))
    return model


def pretrain(model: Any, cfg: Any, missing: Iterable[str]) -> dict[str, str]:
    """Gives backbones the weights that MODEL.PRETRAINED asks for: those with a tensor among `missing`, which
    are names of the model's state dict.

    Returns what they were given by branch, such as {"local": "ImageNet weights /…/resnet18-5c106cde.pth"}. Raises
    PretrainedError where the weights cannot be had.
    """
    wanted, given = cfg.MODEL.PRETRAINED, {}
    for branch, modules in model.choices.items():
        group = branch.upper()
        source = wanted.get(group, True) if hasattr(wanted, "get") else wanted
        if source and any(f"choices.{branch}.basenet." in name for name in missing):
            kind = cfg.MODEL[group].BACKBONE.NAME
            path = pretrained_file(kind, source)
            load_pretrained(modules["basenet"], kind, str(path))
            given[branch] = f"{'ImageNet' if source is True else 'pretrained'} weights {path}"
    return given
