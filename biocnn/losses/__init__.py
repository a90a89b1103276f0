"""Losses for any PyTorch loop.

Of logits, 2-D and 3-D: ``loss(logits, target, valid=None)``. Of density maps: ``loss(prediction, density, points)``,
see :mod:`biocnn.losses.density`. Both give a scalar, and can be added and weighted.

>>> loss = 0.5 * BCE() + 0.5 * SoftClDice(iterations=5)
>>> loss.names
['bce', 'cldice']
"""

from biocnn.losses.base import Loss, Term, WeightedSum
from biocnn.losses.bayesian import BayesianLoss
from biocnn.losses.cldice import SoftClDice
from biocnn.losses.density import CountL1, DensityLoss, DensityMSE, DensitySum, LogCosh, SumPooled
from biocnn.losses.distance import DistanceRegression, predicted_distance, truncated_distance
from biocnn.losses.distribution_matching import DMCount, OptimalTransport, TotalVariation
from biocnn.losses.feature_topology import FeatureTopology
from biocnn.losses.overlap import BCE, Dice
from biocnn.losses.region_separation import RegionSeparation
from biocnn.losses.skeleton import iterations_for_radius, soft_skeleton
from biocnn.losses.skeleton_recall import SkeletonRecall, skeleton_tube

__all__ = [
    "BCE",
    "BayesianLoss",
    "CountL1",
    "DMCount",
    "DensityLoss",
    "DensityMSE",
    "DensitySum",
    "Dice",
    "DistanceRegression",
    "FeatureTopology",
    "LogCosh",
    "Loss",
    "OptimalTransport",
    "RegionSeparation",
    "SkeletonRecall",
    "SoftClDice",
    "SumPooled",
    "Term",
    "TotalVariation",
    "WeightedSum",
    "iterations_for_radius",
    "predicted_distance",
    "skeleton_tube",
    "soft_skeleton",
    "truncated_distance",
]
