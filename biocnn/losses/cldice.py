"""The clDice loss of Shit et al. 2021."""

import torch

from biocnn.errors import DataError
from biocnn.losses.base import Loss, warn_once
from biocnn.losses.overlap import check_smooth
from biocnn.losses.skeleton import check_iterations, soft_skeleton


class SoftClDice(Loss):
    """Soft clDice: is the skeleton of each in the other?

    With the soft skeleton S, the probability P and the truth L, per channel of a sample (paper, eqs. 1 and 2,
    algorithm 2):

        precision = (sum(S(P) L) + s) / (sum(S(P)) + s),    sensitivity = (sum(S(L) P) + s) / (sum(S(L)) + s),
        loss = 1 - 2 precision sensitivity / (precision + sensitivity).

    Blind to thickness, so it goes with BCE or Dice: ``0.5 * Dice() + 0.5 * SoftClDice(iterations=10)``. The skeleton of
    a map that is noise is noise: let other terms train the first steps.

    Empty truth: the loss is 1 - 2 q / (q + 1) with q = s / (sum(S(P)) + s), which pushes skeleton pixels down. Truth
    without a skeleton, because it is wider than `iterations` allow: an error if the truth does not touch the edge of
    the image or of `valid`, since then more iterations help; a warning if it does, since a tile within something thick
    has no skeleton. Looking for that waits for the device once. Where the truth has thin structures as well, only the
    wide ones lose their skeleton, and nothing is said: take the iterations from the training data.

    Args:
        iterations: k of the soft skeleton, positive: `iterations_for_radius(widest radius in the training data)`.
            None leaves it to the task, which knows the training data; until then the loss cannot be used.
        smooth: s, in pixels.

    Raises:
        ValueError: if `iterations` is not a positive int, or `smooth` not positive and finite.
    """

    name = "cldice"

    def __init__(self, iterations: int | None = None, smooth: float = 1.0) -> None:
        super().__init__()
        self.iterations = None if iterations is None else check_iterations(iterations)
        self.smooth = check_smooth(smooth)

    def per_sample(self, logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """(B,); arguments as for :meth:`Loss.per_sample`.

        Raises:
            DataError: if the truth of a sample has no skeleton though it ends inside the image.
            ValueError: if the iterations are not known.
        """
        if self.iterations is None:
            raise ValueError(
                "SoftClDice has no iterations: pass iterations_for_radius(widest radius in the training data)."
            )
        probability = torch.sigmoid(logits)
        with torch.no_grad():
            true_skeleton = soft_skeleton(target, self.iterations, valid)
            true_length = true_skeleton.flatten(2).sum(2)
            self._check_skeleton(target, true_length, valid)
        skeleton = soft_skeleton(probability, self.iterations, valid)
        # The skeletons are 0 outside `valid`, so these sums need no mask.
        precision = ((skeleton * target).flatten(2).sum(2) + self.smooth) / (skeleton.flatten(2).sum(2) + self.smooth)
        sensitivity = ((true_skeleton * probability).flatten(2).sum(2) + self.smooth) / (true_length + self.smooth)
        return 1 - (2 * precision * sensitivity / (precision + sensitivity)).mean(1)

    def _check_skeleton(self, target: torch.Tensor, length: torch.Tensor, valid: torch.Tensor | None) -> None:
        lost = (length == 0) & target.flatten(2).any(2)
        if not bool(lost.any()):
            return
        if bool((lost & ~touches_edge(target, valid)).any()):
            raise DataError(
                f"the truth has structures, but no skeleton after {self.iterations} iterations: they are wider "
                "than that. Pass iterations_for_radius(widest radius in the training data)."
            )
        warn_once(
            self,
            f"the truth of a tile is so wide that it has no skeleton after {self.iterations} iterations, so "
            "no gap in it can be found. Said once; if it happens often, use more iterations or larger tiles.",
        )


def touches_edge(target: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Whether foreground lies on the edge of the image, or next to what is not valid.

    Args:
        target: (B, C, *S) of 0 and 1.
        valid: (B, 1, *S) bool, or None.

    Returns:
        (B, C) bool.
    """
    inside = torch.ones_like(target[:, :1]) if valid is None else valid.to(target.dtype)
    for axis in range(2, target.ndim):
        size = target.shape[axis]
        zero = torch.zeros_like(inside.narrow(axis, 0, 1))
        padded = torch.cat([zero, inside, zero], axis)
        inside = torch.minimum(torch.minimum(padded.narrow(axis, 0, size), inside), padded.narrow(axis, 2, size))
    return (target * (1 - inside)).flatten(2).any(2)
