"""Values of images' attributes, and styles of images and of persons in pose files, with a trained model.

    base.py         ImageClassifier: what classifiers of images share
    attributes.py   AttributeClassifier: images -> value and probability of each attribute
    classifier.py   StyleClassifier: images -> style and score
    poses.py        pose JSON files -> JSON files with the style of each person
    __main__.py     `python -m asenpp.inference attributes|image|poses`
"""

from __future__ import annotations

from .attributes import AttributeClassifier
from .classifier import StyleClassifier
from .poses import classify_poses

__all__ = ["AttributeClassifier", "StyleClassifier", "classify_poses"]
