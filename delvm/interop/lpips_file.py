"""LPIPS from a file of VGG16's weights that the user has: nothing is downloaded."""

from pathlib import Path

from delvm.errors import UserError
from delvm.interop.weight_files import read_tensors
from delvm.models.perceptual import LPIPS

VGG16 = "a VGG16 with torchvision's names (vgg16-397923af.pth of download.pytorch.org/models)"


def load_lpips(path: str | Path, key: str, hint: str) -> LPIPS:
    """LPIPS with these weights of VGG16; its linear heads are those in torchmetrics.

    Args:
        path: A state dict, pickled or .safetensors.
        key: The setting that names the file, for errors.
        hint: What to do about an error.

    Raises:
        UserError: The file is missing or damaged, or has other weights.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{key}={path} not found: {hint}")
    import torchmetrics  # its package carries the linear heads

    heads = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/vgg.pth"
    try:
        return LPIPS(read_tensors(path), read_tensors(heads))
    except ValueError as error:
        raise UserError(f"{key}={path} is not a VGG16: {error}: {hint}") from None
