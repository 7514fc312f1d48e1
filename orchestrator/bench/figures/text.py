"""Text in figures: it stays on the page, in its own room and off other text, whatever names and numbers it holds."""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

MARKER_PT = 5.0
"""Half the side of the square that a marker keeps free."""
DISTANCES_PT = (8.0, 18.0, 30.0, 44.0)
DIRECTIONS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))


def legend_below(figure: Figure, handles: Sequence[Artist], *, columns: int | None = None) -> None:
    """One legend under all panels, in as many columns (at most `columns`) as the page is wide; narrowed if need be."""
    room = 0.97 * figure.bbox.width
    for ncols in range(min(columns or len(handles), len(handles)), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=ncols, handletextpad=0.5)
        width = legend.get_window_extent().width
        if width <= room:
            return
        if ncols > 1:
            legend.remove()
    for text in legend.get_texts():
        _narrow(text, width, 0.9 * room)


def hold_texts(figure: Figure) -> None:
    """Narrow every title and axis label that is longer than its panel; what keeps its size is not touched."""
    figure.draw_without_rendering()
    for axes in figure.axes:
        room = axes.get_window_extent()
        titles = [each for each in axes.get_children() if isinstance(each, Text) and each not in axes.texts]
        for text in (axes.xaxis.label, *titles):
            _narrow(text, text.get_window_extent().width, room.width)
        _narrow(axes.yaxis.label, axes.yaxis.label.get_window_extent().height, room.height)
        for text in axes.texts if not axes.axison else ():  # a key's own words, centred where they stand
            middle = text.get_window_extent()
            _narrow(text, middle.width, 0.62 * room.width)


def place_labels(axes: Axes, labels: Sequence[tuple[np.ndarray, str]], markers: np.ndarray) -> None:
    """Write a text beside each of the points it belongs to, off all markers [N, 2] and off each other, within the axes.

    As near as there is room; a line leads to it from farther away. A text that finds none is left out.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    unit = figure.dpi / 72
    centres = axes.transData.transform(markers[np.isfinite(markers).all(axis=1)])
    taken = [Bbox.from_bounds(*(centre - MARKER_PT * unit), *[2 * MARKER_PT * unit] * 2) for centre in centres]
    for point, text in labels:
        for x, y, options in _spots():
            note = axes.annotate(
                text,
                (float(point[0]), float(point[1])),
                xytext=(x, y),
                textcoords="offset points",
                fontsize=8.5,
                zorder=6,
                bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.75},
                **options,
            )
            note.get_window_extent()  # moves it to its point
            box = Text.get_window_extent(note)  # without the line
            room = axes.get_window_extent()
            inside = room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            note.remove()


def _spots() -> Iterator[tuple[float, float, dict]]:
    """Offsets in points, nearest first, with the alignment that lets the text begin there."""
    for distance in DISTANCES_PT:
        for x, y in DIRECTIONS:
            across, up = ("right", "center", "left")[x + 1], ("top", "center", "bottom")[y + 1]
            leads = {"arrowstyle": "-", "color": "#9A9A9A", "lw": 0.7, "shrinkA": 0, "shrinkB": 4}
            options = {"ha": across, "va": up} | ({"arrowprops": leads} if distance > DISTANCES_PT[0] else {})
            yield x * distance, y * distance, options


def _narrow(text: Text, size: float, room: float) -> None:
    if size > room > 0:
        text.set_fontsize(float(text.get_fontsize()) * room / size)
