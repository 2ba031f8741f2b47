"""ResNet-18, 34 and 50 (He et al. 2016), from conv1 to layer3, or to layer4; torchvision's names.

Every batch norm is fused with the ReLU, and at the end of a block with the addition, that follow.
"""

from __future__ import annotations

import math

from .. import nn
from .._asen import Tensor
from ..amp import raised
from ..nn import init
from ..nn.fold import conv_bn

__all__ = ["ResNet", "resnet18", "resnet34", "resnet50", "backbone", "LAYER3_WIDTH", "LAYER4_WIDTH"]

LAYER3_WIDTH = {"resnet18": 256, "resnet34": 256, "resnet50": 1024}
LAYER4_WIDTH = {"resnet18": 512, "resnet34": 512, "resnet50": 2048}


def _conv(in_channels: int, out_channels: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, size, stride=stride, padding=size // 2, bias=False)


class _Block(nn.Module):
    """What both kinds share: the shortcut, which changes resolution and width where it must."""

    expansion = 1

    def shortcut(self, x: Tensor, groups: int) -> Tensor:
        if self.downsample is None:
            return x
        conv, bn = self.downsample
        return conv_bn(conv, bn, x, groups=groups)

    def make_shortcut(self, in_channels: int, out_channels: int, stride: int) -> None:
        changes = stride != 1 or in_channels != out_channels
        self.downsample = nn.Sequential(_conv(in_channels, out_channels, 1, stride),
                                        nn.BatchNorm2d(out_channels)) if changes else None


class BasicBlock(_Block):
    """Two 3x3 convolutions, the first with the stride."""

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = _conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.make_shortcut(in_channels, width, stride)

    def forward(self, x: Tensor, groups: int = 1) -> Tensor:
        y = conv_bn(self.conv1, self.bn1, x, relu=True, groups=groups)
        return conv_bn(self.conv2, self.bn2, y, relu=True, residual=self.shortcut(x, groups), groups=groups)


class Bottleneck(_Block):
    """1x1, 3x3 with the stride, 1x1 to four times the width."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = _conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.make_shortcut(in_channels, 4 * width, stride)

    def forward(self, x: Tensor, groups: int = 1) -> Tensor:
        y = conv_bn(self.conv1, self.bn1, x, relu=True, groups=groups)
        y = conv_bn(self.conv2, self.bn2, y, relu=True, groups=groups)
        return conv_bn(self.conv3, self.bn3, y, relu=True, residual=self.shortcut(x, groups), groups=groups)


class ResNet(nn.Module):
    """The stem (7x7 convolution and 3x3 max pool, each of stride 2) and three or four stages.

    block: BasicBlock or Bottleneck.   layers: blocks in each of the four stages.
    layer4: whether the fourth stage is there.

    forward(x (N, 3, H, W), groups=1): the feature map of layer3, (N, C, H/16, W/16) rounded up.
    groups: the batch is that many passes in one; see nn.BatchNorm2d.
    Initial convolution weights: N(0, sqrt(2 / (k k out))).
    """

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], layers: tuple[int, int, int, int],
                 layer4: bool = False):
        super().__init__()
        self.conv1 = _conv(3, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for stage in range(4 if layer4 else 3):
            width = 64 * 2**stage
            blocks = nn.Sequential()
            for i in range(layers[stage]):
                blocks.add_module(str(i), block(channels, width, 2 if stage > 0 and i == 0 else 1))
                channels = width * block.expansion
            self.add_module(f"layer{stage + 1}", blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                init.normal_(module.weight, 0.0, math.sqrt(2.0 / out))

    def forward(self, x: Tensor, groups: int = 1) -> Tensor:
        x = self.maxpool(conv_bn(self.conv1, self.bn1, x, relu=True, groups=groups))
        for stage in (self.layer1, self.layer2, self.layer3):
            for block in stage:
                x = block(x, groups)
        return raised(x)

    def layer4_average(self, features: Tensor, groups: int = 1) -> Tensor:
        """Global average of layer4 over a feature map of layer3: (N, LAYER4_WIDTH)."""
        if "layer4" not in self._modules:
            raise ValueError("this backbone was made without layer4")
        for block in self.layer4:
            features = block(features, groups)
        return raised(features).mean(dims=(2, 3))


_KINDS = {"resnet18": (BasicBlock, (2, 2, 2, 2)), "resnet34": (BasicBlock, (3, 4, 6, 3)),
          "resnet50": (Bottleneck, (3, 4, 6, 3))}


def backbone(name: str, layer4: bool = False) -> ResNet:
    """A ResNet by name, with initial weights; load_pretrained (pretrained.py) gives it ImageNet's."""
    if name not in _KINDS:
        raise ValueError(f"there is no backbone {name!r}: {', '.join(_KINDS)}")
    return ResNet(*_KINDS[name], layer4=layer4)


def _make(name: str, pretrained: bool | str, layer4: bool) -> ResNet:
    model = backbone(name, layer4)
    if pretrained:
        from .pretrained import load_pretrained

        load_pretrained(model, name, pretrained)
    return model


def resnet18(pretrained: bool | str = False, layer4: bool = False) -> ResNet:
    """ResNet-18 to layer3 (or layer4). pretrained: True, a path or a URL."""
    return _make("resnet18", pretrained, layer4)


def resnet34(pretrained: bool | str = False, layer4: bool = False) -> ResNet:
    """ResNet-34 to layer3 (or layer4). pretrained: True, a path or a URL."""
    return _make("resnet34", pretrained, layer4)


def resnet50(pretrained: bool | str = False, layer4: bool = False) -> ResNet:
    """ResNet-50 to layer3 (or layer4). pretrained: True, a path or a URL."""
    return _make("resnet50", pretrained, layer4)
