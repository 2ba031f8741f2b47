"""Style classification of single images and of persons in pose files, with a trained style model.

    base.py         ImageClassifier: what classifiers of images share
    classifier.py   StyleClassifier: images -> style and score
    poses.py        pose JSON files -> JSON files with the style of each person
    __main__.py     `python -m asenpp.inference image|poses`
"""

from __future__ import annotations

from .classifier import StyleClassifier
from .poses import classify_poses

__all__ = ["StyleClassifier", "classify_poses"]
