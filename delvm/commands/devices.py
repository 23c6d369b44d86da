"""Which device a verb's networks run on."""

from delvm.configs.verbs import Device
from delvm.errors import UserError


def pick(device: Device) -> str:
    """The device's name for torch.

    Raises:
        UserError: a GPU is asked for and none is visible.
    """
    import torch

    visible = torch.cuda.is_available()
    if device is Device.cuda and not visible:
        raise UserError("device=cuda, and no CUDA device is visible: set device=cpu")
    return "cuda" if visible and device is not Device.cpu else "cpu"
