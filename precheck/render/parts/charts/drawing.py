"""Drawings: Vega-Lite specifications made into SVG by vl-convert.

Colours are CSS variables of the page, so that one drawing serves light, dark and paper.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

_VEGA_LITE = "5.20"
"""The version that the specifications are written for."""
WIDTH = 480
"""Of the drawing without its axes, in pixels: as a whole it fits on a phone, and can be read."""

_SVG = "http://www.w3.org/2000/svg"
_CONFIG = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "padding": {"left": 40, "right": 8, "top": 24, "bottom": 4},
    "axis": {
        "aria": False,  # what is pointed at tells its figure, and nothing else
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "titleFontWeight": "normal",
        "labelFontSize": 13,
        "titleFontSize": 13,
    },
    "legend": {
        "aria": False,
        "labelColor": "var(--text)",
        "titleColor": "var(--soft)",
        "titleFontWeight": "normal",
        "titleFontSize": 13,
        "labelFontSize": 13,
        "orient": "bottom",
        "symbolType": "stroke",
        "symbolSize": 700,
        "columns": 2,
        "columnPadding": 32,
        "labelLimit": 0,
    },
    "text": {"color": "var(--text)", "fontSize": 12},
}


def drawn(spec: dict[str, Any], *, title: str) -> str:
    """The SVG of a specification.

    Args:
        spec: Vega-Lite without its frame.
        title: what a screen reader says of it.
    """
    import vl_convert  # noqa: PLC0415  84 MB that only this format needs

    whole = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": WIDTH,
        "config": _CONFIG,
        **spec,
    }
    text = vl_convert.vegalite_to_svg(whole, vl_version=_VEGA_LITE, allowed_base_urls=[])
    return _for_readers(text, title=title)


def _for_readers(text: str, *, title: str) -> str:
    """One image for a screen reader; each mark tells its figure when it is pointed at."""
    ET.register_namespace("", _SVG)
    root = ET.fromstring(text)  # noqa: S314  drawn here, from our own specification
    for element in root.iter():
        said = element.attrib.pop("aria-label", None)
        for name in ("role", "aria-roledescription", "aria-hidden"):
            element.attrib.pop(name, None)
        if said is not None and element.tag != f"{{{_SVG}}}svg":
            label = ET.Element(f"{{{_SVG}}}title")
            label.text = said
            element.insert(0, label)
    root.set("role", "img")
    root.set("aria-label", title)
    return ET.tostring(root, encoding="unicode")
