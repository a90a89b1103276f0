"""Losses: ``loss(logits, target, valid=None)`` gives a scalar; nn.Modules for any PyTorch loop, 2-D and 3-D.

>>> loss = 0.5 * BCE() + 0.5 * SoftClDice(iterations=5)
>>> loss.names
['bce', 'cldice']
"""

from biocnn.losses.base import Loss, Term, WeightedSum
from biocnn.losses.cldice import SoftClDice
from biocnn.losses.distance import DistanceRegression, predicted_distance, truncated_distance
from biocnn.losses.feature_topology import FeatureTopology
from biocnn.losses.overlap import BCE, Dice
from biocnn.losses.region_separation import RegionSeparation
from biocnn.losses.skeleton import iterations_for_radius, soft_skeleton
from biocnn.losses.skeleton_recall import SkeletonRecall, skeleton_tube

__all__ = [
    "BCE",
    "Dice",
    "DistanceRegression",
    "FeatureTopology",
    "Loss",
    "RegionSeparation",
    "SkeletonRecall",
    "SoftClDice",
    "Term",
    "WeightedSum",
    "iterations_for_radius",
    "predicted_distance",
    "skeleton_tube",
    "soft_skeleton",
    "truncated_distance",
]
