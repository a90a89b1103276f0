"""All augmentation policies, and the only module that imports albumentations.

albumentations 2.0.8, the last release under the MIT licence, is no longer maintained. The adapter below closes its
known holes: the random stream that repeats in every worker and every epoch, constructor arguments that are only
warned about, and float images that are clipped at 1 without a word.
"""

import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np
from skimage.color import hed_from_rgb, rgb_from_hed

from biocnn.data.placement import SYMMETRIES
from biocnn.errors import DataError

_SAFE_SHIFT = 4  # px; the label of a PCam patch is about its centre 32x32 px, and the PCam authors shift by 4


class Augmentation:
    """Transforms that are a function of (seed, epoch, index) and of nothing else.

    The same item gets the same augmentation whatever the number of workers, their start method or the number of
    processes, and another one in every epoch. The random numbers come from Philox, a generator that is made to be
    set to any position: (seed) is its key and (epoch, index) its counter.

    Reference: Salmon et al., Parallel random numbers: as easy as 1, 2, 3. SC 2011.

    Args:
        transforms: albumentations transforms, applied in order.

    Raises:
        ValueError: if a transform was given an argument that it does not know.
    """

    def __init__(self, transforms: Sequence[A.BasicTransform]) -> None:
        self._compose = A.Compose(list(transforms), additional_targets={"valid": "mask", "tube": "mask"})
        self._philox = np.random.Philox(key=0)
        # Counter 0 and nothing buffered: where a fresh generator stands.
        self._position = self._philox.state
        self._python = random.Random()
        self._compose.set_random_state(np.random.Generator(self._philox), self._python)

    def _seed(self, seed: int, epoch: int, index: int) -> None:
        # Setting the position in place costs 4 us; building generators for every item costs 13 us and more.
        self._position["state"]["counter"][1:3] = index, epoch
        self._position["state"]["key"][0] = seed
        self._philox.state = self._position
        self._python.seed(int(self._philox.random_raw()))

    def __call__(self, arrays: Mapping[str, np.ndarray], seed: int, epoch: int, index: int) -> dict[str, Any]:
        """Transform the arrays of one item together.

        Args:
            arrays: ``image`` (H, W, C) uint8, or float32 in 0..1; optionally ``mask``, ``valid`` and ``tube`` (H, W).
            seed: of the run, non-negative.
            epoch: number of the epoch.
            index: of the item in its data set.

        Returns:
            The transformed arrays under the same names.

        Raises:
            DataError: if the image is of another dtype or range: albumentations would clip or distort it in silence.
        """
        check_image_range(arrays["image"])
        self._seed(seed, epoch, index)
        result: dict[str, Any] = self._compose(**arrays)
        return result

    @property
    def moves_pixels(self) -> list[str]:
        """Names of the transforms that change where things are, which points would have to follow."""
        return _spatial(self._compose)

    @property
    def largest_scale(self) -> float:
        """Largest magnification of what an image shows: 1, unless a subclass that magnifies says otherwise."""
        return 1.0

    def matrix(self, random: np.random.Generator) -> np.ndarray:
        """How a tile is turned, mirrored and scaled when it is cut, see :class:`biocnn.data.placement.Placement`.

        Args:
            random: where random numbers come from.

        Returns:
            (2, 2) float64; the identity, unless a subclass says otherwise.
        """
        return np.eye(2)


def _spatial(transforms: A.BaseCompose) -> list[str]:
    found: list[str] = []
    for transform in transforms.transforms:
        if isinstance(transform, A.BaseCompose):
            found += _spatial(transform)
        elif isinstance(transform, A.DualTransform) and not isinstance(transform, A.NoOp):
            found.append(type(transform).__name__)
    return found


def check_image_range(image: np.ndarray) -> None:
    """Raise a DataError unless `image` is uint8, or float32 with all values in 0..1."""
    if image.dtype == np.uint8:
        return
    if image.dtype != np.float32:
        raise DataError(f"Augmentation takes uint8, or float32 in 0..1; received {image.dtype}. Convert it first.")
    low, high = float(image.min()), float(image.max())
    if not (low >= 0.0 and high <= 1.0):
        raise DataError(
            f"Augmentation takes float images in 0..1; received values from {low:g} to {high:g}, which would be "
            "clipped. Scale the image first."
        )


def strict(transform: type[A.BasicTransform], **arguments: Any) -> A.BasicTransform:
    """Make a transform; an unknown argument is an error instead of a warning.

    Raises:
        ValueError: with albumentations' own words.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            return transform(**arguments)
        except UserWarning as warning:
            raise ValueError(f"{transform.__name__}: {warning}") from warning


class HEDJitter(A.ImageOnlyTransform):
    """Jitter the amount of haematoxylin, eosin and DAB in an RGB image.

    The optical density of a pixel is taken apart into the three stains of a fixed basis, each stain c is replaced
    by alpha * c + beta, and the image is put together again. A fixed basis never fails, unlike one estimated from
    the patch, which does not exist for a blank patch. Both changes of basis and the jitter are one 3x4 matrix in
    optical density.

    References: Ruifrok and Johnston 2001 (the basis); Tellez et al. 2018, doi 10.1109/TMI.2018.2820199 (the jitter).

    Args:
        sigma: alpha is uniform in 1 - sigma..1 + sigma and beta in -sigma..sigma; 0.05 is "light", 0.2 "strong".
        p: probability of being applied.
    """

    _TO_STAINS = hed_from_rgb.astype(np.float64)
    _FROM_STAINS = rgb_from_hed.astype(np.float64)
    # Natural optical density; 1/255 stands for black, so that the logarithm is finite.
    _DENSITY = -np.log(np.maximum(np.arange(256), 1) / 255.0).astype(np.float32)

    def __init__(self, sigma: float = 0.05, p: float = 0.5) -> None:
        super().__init__(p=p)
        if not 0.0 <= sigma < 1.0:
            raise ValueError(f"sigma must be in 0..1, received {sigma}.")
        self.sigma = sigma

    def get_params(self) -> dict[str, Any]:
        """Draw the matrix of one image, (3, 4) float64 acting on (density, 1)."""
        alpha = self.random_generator.uniform(1 - self.sigma, 1 + self.sigma, 3)
        beta = self.random_generator.uniform(-self.sigma, self.sigma, 3)
        linear = self._TO_STAINS @ np.diag(alpha) @ self._FROM_STAINS
        return {"matrix": np.column_stack([linear.T, beta @ self._FROM_STAINS])}

    def apply(self, img: np.ndarray, matrix: np.ndarray, **params: Any) -> np.ndarray:
        """Apply the matrix to (H, W, 3) uint8."""
        if img.ndim != 3 or img.shape[2] != 3 or img.dtype != np.uint8:
            raise DataError(f"HEDJitter takes (H, W, 3) uint8, received {img.shape} {img.dtype}.")
        density = cv2.transform(cv2.LUT(img, self._DENSITY), -matrix)
        # convertScaleAbs rounds and saturates to 0..255; the exponential is never negative.
        return cv2.convertScaleAbs(cv2.exp(density), alpha=255.0)


class PatchAugmentation(Augmentation):
    """For patches whose label is about their centre: D4, small shifts, stain and brightness jitter.

    Args:
        max_shift: px, at most 4: a larger shift can move what made the patch positive out of its centre.
        hed_sigma: strength of :class:`HEDJitter`; 0 switches it off.
        hed_probability: how often stains are jittered.
        brightness: largest relative change of brightness and contrast; 0 switches it off.

    Raises:
        ValueError: if `max_shift` is not in 0..4.
    """

    def __init__(
        self,
        max_shift: int = _SAFE_SHIFT,
        hed_sigma: float = 0.05,
        hed_probability: float = 0.75,
        brightness: float = 0.1,
    ) -> None:
        if not 0 <= max_shift <= _SAFE_SHIFT:
            raise ValueError(
                f"max_shift must be in 0..{_SAFE_SHIFT} px, received {max_shift}: the label is about the centre "
                "of the patch, and a larger shift can move what it names out of there."
            )
        self.max_shift, self.brightness = max_shift, brightness
        self.hed_sigma, self.hed_probability = hed_sigma, hed_probability
        transforms: list[A.BasicTransform] = [strict(A.D4, p=1.0)]
        if max_shift:
            transforms.append(RandomShift(max_shift))
        if hed_sigma:
            transforms.append(HEDJitter(hed_sigma, hed_probability))
        if brightness:
            transforms.append(
                strict(
                    A.RandomBrightnessContrast,
                    brightness_limit=(-brightness, brightness),
                    contrast_limit=(-brightness, brightness),
                    p=0.5,
                )
            )
        super().__init__(transforms)


class TileAugmentation(Augmentation):
    """For tiles of images in which direction and size mean nothing, such as vessels, membranes and cells.

    Geometry is part of cutting the tile (:meth:`matrix`): one of the eight symmetries of the square always, and
    sometimes any angle and scale. What turns into the tile from outside is image, not a mirrored border. Tone, blur
    and noise change the image alone. Tones vary as much as they do between the images of a data set: in DRIVE the mean
    of a channel has a standard deviation of 17 to 22 % between images. Half as much jitter (0.1, 1.25, 1.25, 0.05) cost
    0.010 of Dice and 0.016 of clDice on four held-out images.

    Args:
        affine_probability: how often a tile is rotated by any angle and scaled.
        rotation: largest angle in degrees, 0..180; the symmetries come on top.
        scale: smallest and largest magnification.
        brightness: largest shift of all values, for values in 0..1.
        contrast: largest factor on the distance from the mean, and its inverse the smallest; 1 switches it off.
        gamma: largest exponent, and its inverse the smallest; 1 switches it off.
        colour: largest relative change of one channel against the others.
        blur: largest standard deviation in pixels of a Gaussian blur of every fifth tile; 0 switches it off.
        noise: largest standard deviation of Gaussian noise on every fifth tile, for values in 0..1; 0 switches it off.

    Raises:
        ValueError: if a strength is out of its range.
    """

    def __init__(
        self,
        affine_probability: float = 0.3,
        rotation: float = 180.0,
        scale: tuple[float, float] = (0.8, 1.25),
        brightness: float = 0.15,
        contrast: float = 1.5,
        gamma: float = 1.5,
        colour: float = 0.25,
        blur: float = 0.8,
        noise: float = 0.03,
    ) -> None:
        if not (0 <= affine_probability <= 1 and 0 <= rotation <= 180 and 0.1 <= scale[0] <= scale[1] <= 10):
            raise ValueError(
                "Expected affine_probability in 0..1, rotation in 0..180 and scale (low, high) within 0.1..10, "
                f"received {affine_probability}, {rotation} and {scale}."
            )
        self.affine_probability, self.rotation, self.scale = affine_probability, rotation, scale
        transforms: list[A.BasicTransform] = [ToneJitter(brightness, contrast, gamma, colour, p=0.75)]
        if blur:
            transforms.append(strict(A.GaussianBlur, blur_limit=0, sigma_limit=(0.3 * blur, blur), p=0.2))
        if noise:
            transforms.append(strict(A.GaussNoise, std_range=(0.2 * noise, noise), p=0.2))
        super().__init__(transforms)

    @property
    def largest_scale(self) -> float:
        """Largest magnification of a tile, those that are not scaled among them."""
        if self.affine_probability == 0:
            return 1.0
        return self.scale[1] if self.affine_probability == 1 else max(1.0, self.scale[1])

    def matrix(self, random: np.random.Generator) -> np.ndarray:
        """A symmetry of the square, and at times a rotation and a scale drawn evenly on a logarithmic axis."""
        # All numbers are drawn whatever comes of them, so that a setting changes nothing but what it is about.
        symmetry = SYMMETRIES[int(random.integers(len(SYMMETRIES)))]
        applied, angle, growth = random.random(), random.uniform(-1, 1), random.random()
        if applied >= self.affine_probability:
            return symmetry
        angle *= np.deg2rad(self.rotation)
        low, high = self.scale
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return symmetry @ turn / (low * (high / low) ** growth)


def symmetries() -> TileAugmentation:
    """The eight symmetries of the square and nothing else, the default of cell counting.

    Where cells overlap, brightness says how many they are: on VGG cells (32 training images) the tones, scales and
    angles that :class:`TileAugmentation` varies by default left validation images 8 cells off, against 3 without. Where
    exposure or stain differ between images and mean nothing, give a TileAugmentation.
    """
    return TileAugmentation(
        affine_probability=0.0, brightness=0.0, contrast=1.0, gamma=1.0, colour=0.0, blur=0.0, noise=0.0
    )


class ToneJitter(A.ImageOnlyTransform):
    """Jitter exposure: gamma, contrast about the mean, brightness, and the balance of the channels.

    A value v in 0..1 becomes ``gain * ((v**gamma - m) * contrast + m + shift)``, cut to 0..1, where m is the mean of
    the image to the power of gamma. Of 8-bit images it is a table look-up, 0.1 ms for 158x158x3.

    Args:
        brightness: `shift` is uniform in -brightness..brightness.
        contrast: `contrast` is in 1/contrast..contrast, uniform in its logarithm.
        gamma: `gamma` is in 1/gamma..gamma, uniform in its logarithm.
        colour: `gain` of each channel is uniform in 1 - colour..1 + colour.
        p: probability of being applied.

    Raises:
        ValueError: if a strength is out of its range.
    """

    def __init__(self, brightness: float, contrast: float, gamma: float, colour: float, p: float = 0.5) -> None:
        super().__init__(p=p)
        if not (0 <= brightness < 1 and contrast >= 1 and gamma >= 1 and 0 <= colour < 1):
            raise ValueError(
                "Expected brightness and colour in 0..1, contrast and gamma of 1 or more, received "
                f"{brightness}, {colour}, {contrast} and {gamma}."
            )
        self.brightness, self.contrast, self.gamma, self.colour = brightness, contrast, gamma, colour

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw shift, contrast and gamma, and a gain for each channel."""
        shift, contrast, gamma = self.random_generator.uniform(-1, 1, 3)
        gain = 1 + self.colour * self.random_generator.uniform(-1, 1, data["image"].shape[2])
        return {
            "shift": shift * self.brightness,
            "contrast": self.contrast**contrast,
            "exponent": self.gamma**gamma,
            "gain": gain,
        }

    def apply(
        self, img: np.ndarray, shift: float, contrast: float, exponent: float, gain: np.ndarray, **params: Any
    ) -> np.ndarray:
        """Apply to (H, W, C), uint8, or float32 in 0..1."""
        top = 255.0 if img.dtype == np.uint8 else 1.0
        middle = (float(img.mean()) / top) ** exponent
        values = np.arange(256, dtype=np.float32)[:, None] / 255 if img.dtype == np.uint8 else img
        changed = ((values**exponent - middle) * contrast + middle + shift) * gain.astype(np.float32)
        changed = np.clip(changed, 0, 1, dtype=np.float32)
        if img.dtype != np.uint8:
            return changed
        table = np.rint(changed * 255).astype(np.uint8)
        return cv2.LUT(img, table[:, None, :]).reshape(img.shape)


class RandomShift(A.DualTransform):
    """Shift by whole pixels, uniform in -limit..limit along rows and columns; the border is mirrored.

    Args:
        limit: px.
        p: probability of being applied.
    """

    _targets = (A.core.type_definitions.Targets.IMAGE, A.core.type_definitions.Targets.MASK)

    def __init__(self, limit: int, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.limit = limit

    def get_params(self) -> dict[str, Any]:
        """Draw (rows, columns) to shift by."""
        rows, columns = self.random_generator.integers(-self.limit, self.limit, size=2, endpoint=True)
        return {"rows": int(rows), "columns": int(columns)}

    def apply(self, img: np.ndarray, rows: int, columns: int, **params: Any) -> np.ndarray:
        """Shift (H, W) or (H, W, C)."""
        height, width = img.shape[:2]
        pad = self.limit
        padded = cv2.copyMakeBorder(img, pad, pad, pad, pad, cv2.BORDER_REFLECT_101)
        shifted = padded[pad - rows : pad - rows + height, pad - columns : pad - columns + width]
        return np.ascontiguousarray(shifted).reshape(img.shape)

    def apply_to_mask(self, mask: np.ndarray, rows: int, columns: int, **params: Any) -> np.ndarray:
        """Shift (H, W)."""
        return self.apply(mask, rows, columns)
