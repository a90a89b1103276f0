"""How a segmentation calls structure: chosen on validation, stored in the checkpoint, used ever after."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from biocnn.metrics.calling import call_structure


@dataclass(frozen=True)
class Thresholds:
    """How structure is called in a map of probabilities, see :mod:`biocnn.metrics.calling`.

    Attributes:
        threshold: least probability of a pixel.
        min_component: least number of pixels in its component.
        threshold_views: symmetries of the image that they were chosen for; 0 before any choice.
        threshold_steps: steps of refinement that they were chosen for.
        sizes_searched: whether `min_component` was searched for.
    """

    threshold: float = 0.5
    min_component: int = 0
    threshold_views: int = 0
    threshold_steps: int = 0
    sizes_searched: bool = False

    def call(self, probability: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
        """The structure in a map (H, W) of probabilities, (H, W) bool; nothing outside `valid`."""
        return call_structure(probability, self.threshold, self.min_component, valid)

    def __str__(self) -> str:
        smallest = f", components of at least {self.min_component} px" if self.min_component else ""
        return f"threshold {self.threshold:.3f}{smallest}"

    def fit(self, views: int, steps: int, sizes: bool) -> bool:
        """Whether they were chosen for this way to predict."""
        return (self.threshold_views, self.threshold_steps, self.sizes_searched) == (views, steps, sizes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Thresholds":
        """Inverse of :meth:`to_dict`; other entries of the checkpoint are passed over."""
        return cls(**{name: stored[name] for name in asdict(cls())})
