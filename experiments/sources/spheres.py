"""Spheres in front of a photograph, whose depth, normals and labels are known exactly."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from delvm.data.types import ImageArray

Floats = npt.NDArray[np.float64]
NEAR, FAR = 0.8, 6.0  # meters
LIGHT = np.array([-0.5, 0.6, 0.62])
COLORS = np.array([[225, 87, 70], [78, 121, 200], [242, 190, 60], [90, 170, 110], [160, 110, 190]])


class Scene(NamedTuple):
    """An image and its annotations.

    Attributes:
        image: (H, W, 3) uint8.
        depth: (H, W) in meters.
        normals: (H, W, 3) uint8: x to the right, y upwards, z to the camera, each from -1 to 1.
        ids: (H, W) uint8: 0 is the background, 1 + number a sphere.
    """

    image: ImageArray
    depth: Floats
    normals: ImageArray
    ids: npt.NDArray[np.uint8]


def render(centers: Floats, radii: Floats, background: ImageArray) -> Scene:
    """Render spheres as a camera without perspective sees them.

    Args:
        centers: (n, 3) x to the right, y downwards, as fractions of the side, and z, which grows to
            the camera, in the same unit.
        radii: (n,).
        background: (H, W, 3) uint8, square.
    """
    side = len(background)
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    image = background.astype(np.float64)
    height = np.full((side, side), -1.0)  # z of what is visible
    normals = np.zeros((side, side, 3))
    normals[..., 2] = 1
    ids = np.zeros((side, side), np.uint8)
    for number, ((left, top, z), radius) in enumerate(zip(centers, radii, strict=True)):
        nx, ny = (x - left) / radius, (top - y) / radius
        square = 1 - nx**2 - ny**2
        nz = np.sqrt(np.maximum(square, 0))
        visible = (square > 0) & (z + radius * nz > height)
        height[visible] = (z + radius * nz)[visible]
        normals[visible] = np.stack((nx, ny, nz), axis=2)[visible]
        ids[visible] = number + 1
        shade = 0.35 + 0.65 * np.maximum(normals @ LIGHT, 0)
        image[visible] = (shade[..., None] * COLORS[number % len(COLORS)])[visible]
    depth = np.clip(FAR - (FAR - NEAR) * (height + 1) / 2, NEAR, FAR)
    to_colors = np.round((normals + 1) * 127.5).astype(np.uint8)
    return Scene(image.round().astype(np.uint8), depth, to_colors, ids)


def random_scene(seed: int, background: ImageArray, step: float = 0) -> Scene:
    """Some spheres at random, which move as `step` goes from 0 to 1."""
    rng = np.random.default_rng(seed)
    count = 4
    start = rng.uniform((0.15, 0.15, -0.4), (0.85, 0.85, 0.5), (count, 3))
    motion = rng.uniform(-0.35, 0.35, (count, 3))
    return render(start + step * motion, rng.uniform(0.1, 0.22, count), background)


def turned_object(seed: int, background: ImageArray, angle: float) -> Scene:
    """An object of some spheres, turned by an angle in radians about its vertical axis."""
    rng = np.random.default_rng(seed)
    offsets = rng.uniform(-0.22, 0.22, (5, 3))
    offsets[0] = 0
    cos, sin = np.cos(angle), np.sin(angle)
    x, z = offsets[:, 0], offsets[:, 2]
    centers = np.stack((0.5 + cos * x + sin * z, 0.5 + offsets[:, 1], cos * z - sin * x), axis=1)
    radii = np.array([0.17, *rng.uniform(0.07, 0.13, 4)])
    return render(centers, radii, background)
