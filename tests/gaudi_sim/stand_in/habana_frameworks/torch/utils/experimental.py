"""`habana_frameworks.torch.utils.experimental`: which generation a card is."""

from enum import Enum

from .. import hpu  # noqa: F401


class synDeviceType(Enum):
    synDeviceGaudi = 1
    synDeviceGaudi2 = 4
    synDeviceGaudi3 = 5


def _get_device_type() -> synDeviceType:
    return synDeviceType.synDeviceGaudi2


def _is_fp16_supported() -> bool:
    return True
