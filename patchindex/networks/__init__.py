"""Networks: the architectures of Kamb & Ganguli (arXiv 2412.20292), and their training."""

from patchindex.networks.architectures import ARCHITECTURES, ResNet, UNet, make_network
from patchindex.networks.settings import TrainSettings
from patchindex.networks.training import train

__all__ = ["ARCHITECTURES", "ResNet", "TrainSettings", "UNet", "make_network", "train"]
