"""Networks as denoisers: the training of networks, and networks that others trained.

`train` trains the networks of Kamb & Ganguli (arXiv 2412.20292). `open_run`, `open_network` and `wrap` return
a `Network`, a denoiser like the analytic ones.
"""

from patchindex.networks.architectures import ARCHITECTURES, ResNet, UNet, make_network
from patchindex.networks.conversions import NoiseTable
from patchindex.networks.network import Network, wrap
from patchindex.networks.provenance import ImagesRecord
from patchindex.networks.runs import open_network, open_run
from patchindex.networks.settings import TrainSettings
from patchindex.networks.training import train

__all__ = [
    "ARCHITECTURES",
    "ImagesRecord",
    "Network",
    "NoiseTable",
    "ResNet",
    "TrainSettings",
    "UNet",
    "make_network",
    "open_network",
    "open_run",
    "train",
    "wrap",
]
