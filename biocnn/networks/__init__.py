"""Networks: images in, logits out; no losses and no Lightning."""

from biocnn.networks.backbones import Backbone
from biocnn.networks.densenet import SmallDenseNet
from biocnn.networks.lenet import LeNet5
from biocnn.networks.unet import UNet

__all__ = ["Backbone", "LeNet5", "SmallDenseNet", "UNet"]
