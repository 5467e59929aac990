"""A laid-out figure as PNG, as PDF, and as an SVG element that stands inside a page.

The canvases are asked directly: ``savefig`` lays out and draws a figure once more for each format.
"""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Text stays text in PDF; the ids in SVG do not change from run to run. Letters are drawn in SVG: a page has no fonts.
_STYLE: dict[Any, Any] = {"pdf.fonttype": 42, "svg.hashsalt": "flops-fit", "svg.fonttype": "path"}
_DPI = 150.0

# What matplotlib says of itself, in a file of its own; inside a page it is dead weight.
_ASIDES = re.compile(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", re.DOTALL)
_NAMES = re.compile(r'(\bid="|xlink:href="#|\burl\(#)')
_TAG = re.compile(r"<svg\b[^>]*>")
_VIEW = re.compile(r'viewBox="([-\d. ]+)"')


def lay_out(figure: Figure) -> None:
    """Place everything once; from here on the figure is only drawn."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine("none")
    figure.set_dpi(_DPI)


def png(figure: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def pdf(figure: Figure) -> bytes:
    """The figure as PDF, the same bytes each time."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        FigureCanvasPdf(figure).print_pdf(buffer, metadata={"CreationDate": None})  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def inline_svg(figure: Figure, name: str, said: str) -> str:
    """The figure as ``<svg>``, as wide as what it stands in.

    Args:
        figure: What is drawn.
        name: Set before every id in it, so that the figures of a page do not share any.
        said: What a screen reader says of it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})  # type: ignore[no-untyped-call]
    text = _ASIDES.sub("", buffer.getvalue())
    text = _NAMES.sub(rf"\g<1>{name}-", text[text.index("<svg") :])
    view = _VIEW.search(text)
    assert view is not None
    width = float(view[1].split()[2])
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{view[1]}"'
        f' role="img" aria-label="{escape(said)}" style="max-width: {width * 96 / 72:.0f}px">'
    )
    return _TAG.sub(lambda _: opening, text, count=1).strip()
