"""Figures hold their text: legends and names on the page, labels off each other and off the points."""

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Text

from orchestrator.bench.figures.text import hold_texts, legend_below, place_labels


def page(width, height=3.0):
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine())


def handles(*labels):
    return [Line2D([], [], label=label) for label in labels]


@pytest.mark.parametrize(("width", "columns"), [(3, 1), (4.5, 2), (12, 3)])
def test_a_legend_has_as_many_columns_as_the_page_is_wide(width, columns):
    figure = page(width)
    figure.subplots()
    legend_below(figure, handles("trained policy, mean per w", "starting policy, mean per w", "single responses"))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width
    assert len({round(text.get_window_extent().x0) for text in legend.get_texts()}) == columns


def test_a_name_that_is_longer_than_the_page_is_narrowed():
    figure = page(4)
    axes = figure.subplots()
    name = "a_name_of_an_objective_that_goes_on_and_on_and_is_never_at_its_end_although_it_should_be"
    axes.set_xlabel(name)
    axes.set_ylabel(name)
    axes.set_title(name, loc="left")
    legend_below(figure, handles(name))
    hold_texts(figure)
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_text() == name]
    assert len(texts) == 4
    for text in texts:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height


def test_what_has_room_keeps_its_size():
    figure = page(6)
    axes = figure.subplots()
    axes.set_xlabel("helpfulness", fontsize=10)
    hold_texts(figure)
    assert axes.xaxis.label.get_fontsize() == 10


@pytest.mark.parametrize("spread", [0.0, 0.02, 1.0])
def test_labels_are_off_each_other_and_off_every_point(spread):
    figure = page(4.5, 4.5)
    axes = figure.subplots()
    points = np.linspace(0, spread, 11)[:, None] * [1, -1]
    axes.set_xlim(-1, 2)
    axes.set_ylim(-2, 1)
    place_labels(axes, [(points[n], f"w = ({n}, {n})") for n in (0, 5, 10)], points)
    for note in axes.texts:
        note.get_window_extent()
    boxes = [Text.get_window_extent(note) for note in axes.texts]
    assert len(boxes) == 3
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    at = axes.transData.transform(points)
    assert not any(box.contains(x, y) for box in boxes for x, y in at)


def test_a_label_without_room_is_left_out():
    figure = page(1.2, 1.2)
    axes = figure.subplots()
    place_labels(axes, [(np.zeros(2), "w = (0.123456789, 0.876543211)")], np.zeros((1, 2)))
    assert list(axes.texts) == []
