"""Networks: images in, logits or densities out; no losses and no Lightning."""

from biocnn.networks.backbones import Backbone
from biocnn.networks.csrnet import CSRNet
from biocnn.networks.densenet import SmallDenseNet
from biocnn.networks.dual_use import DualUseUNet
from biocnn.networks.fcrn import FCRNA
from biocnn.networks.lenet import LeNet5
from biocnn.networks.unet import UNet

__all__ = ["FCRNA", "Backbone", "CSRNet", "DualUseUNet", "LeNet5", "SmallDenseNet", "UNet"]
