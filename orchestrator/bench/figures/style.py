"""What the figures of a report share.

One colour belongs to one objective everywhere; a preference vector has the mixture of its objectives' colours, and the
starting policy is grey. Shapes: N preference vectors, K objectives. Records are lines of evaluations.jsonl and
metrics.jsonl; null entries are gaps.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from orchestrator.bench.figures.text import hold_texts

Record = Mapping[str, Any]

DPI = 170
PALETTE = 128
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito: told apart by colour-blind readers."""
START = "#8C8C8C"
INK = "#333333"
STYLE: Any = {  # matplotlib types the keys as literals
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9A9A9A",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E9E9E9",
    "grid.linewidth": 0.8,
    "xtick.color": "#6A6A6A",
    "ytick.color": "#6A6A6A",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.8,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    "text.parse_math": False,  # objective names are a user's text
}


def objective_color(k: int) -> str:
    """Colour of objective k, the same in every figure."""
    return COLORS[k % len(COLORS)]


def mixed_colors(weights: Any) -> np.ndarray:
    """sRGB [N, 3] of weights [N, K]: the objectives' colours mixed in the OKLab space, where steps look even.

    Two objectives are mixed along the hue circle, so that the middle is purple rather than the starting policy's grey.
    """
    weights_NK = np.asarray(weights, dtype=np.float64)
    srgb_K3 = np.array([to_rgb(objective_color(k)) for k in range(weights_NK.shape[1])])
    linear_K3 = np.where(srgb_K3 <= 0.04045, srgb_K3 / 12.92, ((srgb_K3 + 0.055) / 1.055) ** 2.4)
    lab_K3 = np.cbrt(linear_K3 @ _LINEAR_TO_LMS.T) @ _LMS_TO_LAB.T
    lab_N3 = weights_NK @ lab_K3
    chroma_N = weights_NK @ np.hypot(lab_K3[:, 1], lab_K3[:, 2])
    if len(lab_K3) == 2:
        hue_N = weights_NK @ np.unwrap(np.arctan2(lab_K3[:, 2], lab_K3[:, 1]))
        lab_N3[:, 1], lab_N3[:, 2] = chroma_N * np.cos(hue_N), chroma_N * np.sin(hue_N)
    else:  # half way (geometrically) back to full strength: the plain mixture of three is pale nearly everywhere
        lab_N3[:, 1:] *= np.sqrt(chroma_N / np.maximum(np.hypot(lab_N3[:, 1], lab_N3[:, 2]), 1e-6))[:, None]
    linear_N3 = np.clip((lab_N3 @ np.linalg.inv(_LMS_TO_LAB).T) ** 3 @ np.linalg.inv(_LINEAR_TO_LMS).T, 0, 1)
    return np.where(linear_N3 <= 0.0031308, linear_N3 * 12.92, 1.055 * linear_N3 ** (1 / 2.4) - 0.055)


_LINEAR_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LMS_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


@contextlib.contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator[Figure]:
    """An empty figure in inches, free of pyplot's global state; what the block drew is written as a PNG.

    The file differs only when the figure does; it has a palette, which makes it a third of the size.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        yield figure
        hold_texts(figure)
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=DPI, facecolor="white")
    image = Image.open(drawn).convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE)
    image.save(path, "PNG", optimize=True)


def by_level(weights: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different weights [L] among [N], rising, and the mean of the values [N] at each."""
    levels, group_N = np.unique(weights, return_inverse=True)
    return levels, np.array([values[group_N == level].mean() for level in range(len(levels))])


def judged(record: Record | None, judge: str) -> Record | None:
    """The part of an evaluation that one judge scored: the reward models' is the record itself."""
    if record is None:
        return None
    return record if judge == "reward" else record.get("audit")


def score_name(judge: str) -> str:
    """What stands behind an objective's name on an axis."""
    return "normalised reward-model score" if judge == "reward" else "normalised audit score"
