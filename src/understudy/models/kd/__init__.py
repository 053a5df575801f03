"""The small networks that the distillation field compares on CIFAR-100, in our own implementation.

`build("resnet20", classes=100)` makes one, `names()` lists them, `load_published` reads the
checkpoints of RepDistiller (Tian et al. 2020, arXiv:1910.10699) and mdistiller (Zhao et al. 2022,
arXiv:2203.08679). Parameter names and counts are theirs. `width` and `in_channels` are free, so the
same networks serve 8x8 digits.
"""

from understudy.models.kd.family import build, names
from understudy.models.kd.mobilenet import MobileNetV2
from understudy.models.kd.network import CifarNetwork
from understudy.models.kd.published import load_published
from understudy.models.kd.resnet import ResNet
from understudy.models.kd.shufflenet_v1 import ShuffleNetV1
from understudy.models.kd.shufflenet_v2 import ShuffleNetV2
from understudy.models.kd.vgg import VGG
from understudy.models.kd.wide_resnet import WideResNet

__all__ = [
    "VGG",
    "CifarNetwork",
    "MobileNetV2",
    "ResNet",
    "ShuffleNetV1",
    "ShuffleNetV2",
    "WideResNet",
    "build",
    "load_published",
    "names",
]
