"""What all losses share: one signature, one set of checks, weighted sums, and losses of other packages as terms.

Notation: B samples, C channels, S the spatial shape, (H, W) or (D, H, W). Every channel is a yes-or-no question of
its own, answered by one logit; a network of two classes therefore has one channel, not two.

Arithmetic is done in float32 under any autocast precision, and in float64 if the logits are. What lies outside `valid`
is never read: it may hold nan or an ignore label.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from numbers import Real

import torch
from torch import nn

from biocnn.errors import DataError

Target = torch.Tensor | Mapping[str, torch.Tensor]

# Logits outside `valid` as a foreign module sees them: background beyond doubt, without overflow in half precision.
BACKGROUND_LOGIT = -20.0


class Loss(nn.Module):
    """Base of the losses: ``loss(logits, target, valid=None)``; 0 is best.

    A new loss implements :meth:`per_sample` and sets `name`. It need not check its input, which has been done once for
    all terms of a sum. The value is the mean over the samples that have a valid pixel, so it does not depend on how
    samples are shared out among batches.

    Weighted sums are written ``0.5 * BCE() + 0.5 * Dice()``.

    Attributes:
        name: what :meth:`terms` calls it.
        target_key: which entry it takes if the target is a mapping, such as a batch.
        binary_target: whether the target has to hold 0 and 1 only; otherwise any finite value will do.
    """

    name: str = "loss"
    target_key: str = "mask"
    binary_target: bool = True
    __array_ufunc__ = None  # `numpy.float32(0.5) * loss` is asked of the loss, not of numpy

    def per_sample(self, logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """The loss of each sample.

        Args:
            logits: (B, C, *S) float32 or float64, finite; 0 where not valid.
            target: (B, C, *S) of the same dtype; 0 where not valid.
            valid: (B, 1, *S) bool, or None if every pixel counts.

        Returns:
            (B,); what it says of a sample without a valid pixel is ignored, but must be finite.
        """
        raise NotImplementedError(f"{type(self).__name__} has to implement per_sample")

    def parts(self) -> list[tuple[str, float, "Loss"]]:
        """Name, weight and loss of each term."""
        return [(self.name, 1.0, self)]

    @property
    def names(self) -> list[str]:
        """The keys of :meth:`terms`, in order."""
        return [name for name, _, _ in self.parts()]

    def terms(self, logits: torch.Tensor, target: Target, valid: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """The weighted terms by name; their sum is the loss, so that a training step can log them at no cost.

        Args:
            logits: (B, C, H, W) or (B, C, D, H, W), any float dtype.
            target: the same shape, any dtype; or a mapping, of which each term takes its `target_key`.
            valid: (B, 1, *S) bool, False where pixels must not count; None if all count.

        Returns:
            A scalar tensor for each name.

        Raises:
            ValueError: if shapes, channels or dtypes do not fit, no pixel is valid, or a target is missing.
            DataError: if a logit is nan or infinite, a target is not 0 or 1, or probabilities were passed for logits.
        """
        parts = self.parts()
        targets = _choose_targets([loss for _, _, loss in parts], target)
        for one in targets.values():
            check_shapes(logits, one, valid)
        binary = {loss.target_key for _, _, loss in parts if loss.binary_target}
        with torch.autocast(logits.device.type, enabled=False):
            with torch.no_grad():
                findings, valid_share = check_values(logits, targets, valid, binary)
            for finding in findings:
                warn_once(self, finding)
            counted = None if valid is None else valid.flatten(1).any(1)
            valid = None if valid_share == 1 else valid
            logits = _blank(logits if logits.dtype == torch.float64 else logits.float(), valid)
            prepared = {key: _blank(one.to(logits.dtype), valid) for key, one in targets.items()}
            return {
                name: weight * mean_over_samples(loss.per_sample(logits, prepared[loss.target_key], valid), counted)
                for name, weight, loss in parts
            }

    def forward(self, logits: torch.Tensor, target: Target, valid: torch.Tensor | None = None) -> torch.Tensor:
        """The loss, a scalar; arguments and errors as for :meth:`terms`."""
        return torch.stack(list(self.terms(logits, target, valid).values())).sum()

    def __add__(self, other: "Loss") -> "WeightedSum":
        if not isinstance(other, Loss):
            return NotImplemented
        return _sum_of(self.parts() + other.parts())

    def __mul__(self, weight: float) -> "WeightedSum":
        if not isinstance(weight, Real):
            return NotImplemented
        return _sum_of([(name, weight * own, loss) for name, own, loss in self.parts()])

    __rmul__ = __mul__


class WeightedSum(Loss):
    """A weighted sum of losses; usually written ``0.5 * BCE() + 0.5 * Dice()``.

    A name that comes twice is numbered: `dice`, `dice_2`.

    Args:
        losses: the terms.
        weights: one positive, finite number for each.

    Raises:
        ValueError: if there is no term, the numbers differ, or a weight is not positive.
    """

    name = "sum"

    def __init__(self, losses: Sequence[Loss], weights: Sequence[float]) -> None:
        super().__init__()
        if not losses or len(losses) != len(weights):
            raise ValueError(
                f"expected one weight for each of at least one loss, received {len(losses)} losses and "
                f"{len(weights)} weights."
            )
        for loss, weight in zip(losses, weights, strict=True):
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(
                    f"the weight of {loss.name!r} must be positive and finite, or the term cannot act; "
                    f"received {weight}."
                )
        inner = [
            (name, weight * own, loss)
            for outer, weight in zip(losses, weights, strict=True)
            for name, own, loss in outer.parts()
        ]
        self.losses = nn.ModuleList(loss for _, _, loss in inner)
        self.weights = [float(weight) for _, weight, _ in inner]

    def parts(self) -> list[tuple[str, float, Loss]]:
        """Name, weight and loss of each term."""
        seen: dict[str, int] = {}
        found = []
        for weight, loss in zip(self.weights, self.losses, strict=True):
            assert isinstance(loss, Loss)
            seen[loss.name] = seen.get(loss.name, 0) + 1
            number = seen[loss.name]
            found.append((loss.name if number == 1 else f"{loss.name}_{number}", weight, loss))
        return found

    def extra_repr(self) -> str:
        """The weights, for printing."""
        return f"weights={self.weights}"


class Term(Loss):
    """A loss of another package as a term: any module that is called as ``module(logits, target)``.

    The module has its own reduction, and it must be told that it gets logits (MONAI and topolosses: ``sigmoid=True``).
    It knows nothing of `valid`: outside it gets background and a logit of -20, which changes means over all pixels.

    Args:
        module: gives a scalar, or one value per sample (B,).
        name: for :meth:`terms`; the class name in lower case if not given.
        target_key: which target it takes if there are several.
        binary_target: whether the target must hold 0 and 1 only.
        two_classes: give the module one logit and one target channel for background and structure each, (B, 2, *S), for
            a softmax over the two, which is then the sigmoid of the one logit.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str | None = None,
        target_key: str = "mask",
        binary_target: bool = True,
        two_classes: bool = False,
    ) -> None:
        super().__init__()
        self.module = module
        self.name = name or type(module).__name__.lower()
        self.target_key = target_key
        self.binary_target = binary_target
        self.two_classes = two_classes

    def per_sample(self, logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """The module's value, the same for each sample if it is a scalar.

        A value of 0 that does not depend on the logits is no error: some topological losses have nothing to say when
        the topology of a batch is right. It is warned about once.

        Raises:
            ValueError: if the value is of another shape, or is not 0 and does not depend on the logits; or if there is
                more than one channel for `two_classes`.
        """
        if valid is not None:
            logits = logits.masked_fill(~valid, BACKGROUND_LOGIT)
        given, truth = logits, target
        if self.two_classes:
            if logits.shape[1] != 1:
                raise ValueError(f"{self.name}: two classes are made of one channel, received {logits.shape[1]}.")
            given, truth = torch.cat([torch.zeros_like(logits), logits], 1), torch.cat([1 - target, target], 1)
        value: torch.Tensor = self.module(given, truth)
        if value.ndim > 1 or (value.ndim == 1 and value.numel() not in (1, logits.shape[0])):
            raise ValueError(
                f"{self.name}: expected a scalar or one value per sample, received {tuple(value.shape)}; "
                "choose the module's mean reduction."
            )
        if logits.requires_grad and not value.requires_grad:
            if value.any():
                raise ValueError(
                    f"{self.name}: its value {value.mean().item():.4g} does not depend on the logits, so it cannot "
                    "train a network."
                )
            warn_once(self, "its value is 0 and does not depend on the logits: it found nothing to correct in a batch.")
        return value.expand(logits.shape[0])


def mean_over_samples(values: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
    """Mean of (B,) over the samples that count, (B,) bool or None for all."""
    if counted is None:
        return values.mean()
    return values.masked_fill(~counted, 0).sum() / counted.sum()


def check_shapes(logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None) -> None:
    """Check what costs nothing to check.

    Raises:
        ValueError: if the logits are not a float tensor of 4 or 5 axes, or the others do not go with them.
    """
    shape = tuple(logits.shape)
    if not logits.is_floating_point() or logits.ndim not in (4, 5) or logits.numel() == 0:
        raise ValueError(
            "logits: expected a non-empty float tensor of shape (B, C, H, W) or (B, C, D, H, W), received "
            f"{logits.dtype} of shape {shape}."
        )
    received = tuple(target.shape)
    if received != shape:
        advice = ""
        if len(received) == len(shape) - 1:
            advice = "; give the target a channel axis: target[:, None]"
        elif received[:1] + received[2:] == shape[:1] + shape[2:] and (shape[1], received[1]) == (2, 1):
            advice = "; two classes are one logit here: logits[:, 1:] - logits[:, :1]"
        elif received[:1] + received[2:] == shape[:1] + shape[2:]:
            advice = "; every logit channel needs a target channel of its own"
        raise ValueError(f"target: expected shape {shape} as that of the logits, received {received}{advice}.")
    if valid is not None and (valid.dtype != torch.bool or tuple(valid.shape) != (shape[0], 1, *shape[2:])):
        raise ValueError(
            f"valid: expected bool of shape {(shape[0], 1, *shape[2:])}, received {valid.dtype} of shape "
            f"{tuple(valid.shape)}."
        )


def check_values(
    logits: torch.Tensor, targets: Mapping[str, torch.Tensor], valid: torch.Tensor | None, binary: set[str]
) -> tuple[list[str], float]:
    """Check all values where `valid`.

    They are looked at together: on a GPU each look waits for all that was queued before it, so there is one.

    Logits are taken for probabilities if none lies outside [0, 1], both ends are reached to 0.01, and at least half of
    the values are that near to an end. Outputs of a sigmoid look so as soon as a network is sure of something, and
    masks passed by mistake always do; logits do not, since a network whose logits stay in [0, 1] never says
    "background" (a logit of 0 is a probability of 0.5).

    Returns:
        Sentences about what may happen in a batch but should not happen in all, and the share of valid pixels.

    Raises:
        ValueError: if no pixel is valid.
        DataError: if a logit is nan or infinite, a binary target is not 0 or 1, another is not finite, or probabilities
            were passed for logits.
    """
    values = _blank(logits, valid)
    facts = [*values.aminmax()]
    for key, target in targets.items():
        known = _blank(target.to(logits.dtype) if logits.dtype == torch.float64 else target.float(), valid)
        # x * x - x is 0 for 0 and 1 only, and nan for nan and infinity; far faster than comparing.
        odd = (known * known - known).abs().amax() if key in binary else (known - known).abs().amax()
        facts += [odd, known.mean()]
    share = torch.ones((), device=logits.device) if valid is None else valid.float().mean()
    low, high, *rest, valid_share = torch.stack([fact.float() for fact in (*facts, share)]).tolist()
    if valid_share == 0:
        raise ValueError("valid: no pixel of the batch counts, so there is nothing to learn from it.")
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError("logits: expected finite values, received nan or infinity; did training diverge?")
    found = []
    for number, key in enumerate(targets):
        odd, mean = rest[2 * number : 2 * number + 2]
        if odd != 0:
            kind = "0 and 1 only" if key in binary else "finite values"
            raise DataError(
                f"target {key!r}: expected {kind} where valid, received others; divide masks of 0 and 255 by "
                "255, and mark pixels to ignore by `valid`."
            )
        if key in binary and (mean == 0 or abs(mean - valid_share) < 1e-7):
            found.append(
                f"every pixel of target {key!r} in a batch is {int(mean > 0)}: overlap and skeleton terms "
                "learn little or nothing from it. Said once; if it is so in every batch, the masks are wrong."
            )
    if low >= 0 and high <= 1 and low <= 0.01 and high >= 0.99:
        inside = values if valid is None else values[valid.expand_as(values)]
        if ((inside - 0.5).abs() >= 0.49).float().mean() >= 0.5:
            raise DataError(
                "logits: all values lie in [0, 1] and most at its ends, as of probabilities or a mask; pass "
                "the network's output before the sigmoid."
            )
    return found, valid_share


def warn_once(loss: nn.Module, message: str) -> None:
    """Warn about something that may happen in a batch, once for each loss and message."""
    said: set[str] = loss.__dict__.setdefault("_said", set())
    if message not in said:
        said.add(message)
        warnings.warn(f"{type(loss).__name__}: {message}", stacklevel=3)


def _blank(values: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    return values if valid is None else values.masked_fill(~valid, 0)


def _choose_targets(losses: Sequence[Loss], target: Target) -> dict[str, torch.Tensor]:
    keys = list(dict.fromkeys(loss.target_key for loss in losses))
    if isinstance(target, torch.Tensor):
        if len(keys) > 1:
            raise ValueError(
                f"the terms need different targets: pass a mapping with the keys {keys}, received one tensor."
            )
        return {keys[0]: target}
    missing = [key for key in keys if key not in target]
    if missing:
        raise ValueError(f"target: expected the keys {keys}, {missing} are missing; received {sorted(target)}.")
    return {key: target[key] for key in keys}


def _sum_of(parts: Sequence[tuple[str, float, Loss]]) -> WeightedSum:
    return WeightedSum([loss for _, _, loss in parts], [weight for _, weight, _ in parts])
