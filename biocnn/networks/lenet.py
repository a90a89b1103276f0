"""LeNet-5 for patches."""

import torch
from torch import nn


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and max pooling instead of the original's squashing and trainable sub-sampling.

    Reference: LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition. 1998.

    Args:
        in_channels: C.
        num_logits: outputs; 1 for two classes.
        input_size: H = W of the patches in pixels; at least 16.

    Raises:
        ValueError: if the patches are too small for two 5x5 convolutions and poolings.
    """

    def __init__(self, in_channels: int = 3, num_logits: int = 1, input_size: int = 96) -> None:
        super().__init__()
        self.init_args = {"in_channels": in_channels, "num_logits": num_logits, "input_size": input_size}
        side = ((input_size - 4) // 2 - 4) // 2
        if side < 1:
            raise ValueError(f"LeNet5 needs patches of at least 16x16 px, received input_size={input_size}.")
        self.input_size = input_size
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * side * side, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_logits),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_logits) of normalised images (B, C, H, W).

        Raises:
            ValueError: if H or W is not `input_size`.
        """
        if image.shape[-2:] != (self.input_size, self.input_size):
            raise ValueError(
                f"LeNet5 was made for {self.input_size}x{self.input_size} px, received {tuple(image.shape)}. Set "
                "input_size to the size of the patches."
            )
        logits: torch.Tensor = self.classifier(self.features(image))
        return logits
