"""The choice of a range of time, as several pages have it."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import panel as pn
from bokeh.events import RangesUpdate

from apps.dashboard.frame import widget
from apps.dashboard.view import SPANS, Range, fixed

_OTHER = "zoomed"
BESIDE_LABELS = (21, 12, 6, 0)
"""Margin of what has no label, so that it stands beside what has one."""


class RangeControl:
    """Buttons for the named spans, and the fixed range that zooming makes."""

    def __init__(self, value: Range, changed: Callable[[], None], spans: tuple[str, ...] = tuple(SPANS)) -> None:
        self.value = value
        self._changed = changed
        self._setting = False
        self._names = list(spans)
        options, name = self._offered()
        self._buttons = widget(pn.widgets.RadioButtonGroup, options=options, value=name, button_type="default")
        self._buttons.margin = BESIDE_LABELS
        self._buttons.param.watch(self._pressed, "value")
        self.view = self._buttons

    def _offered(self) -> tuple[list[str], str]:
        if self.value.live and self.value.span is not None:
            return self._names, self.value.span
        return [*self._names, _OTHER], _OTHER

    def set(self, value: Range) -> None:
        """Another range, from elsewhere than the buttons."""
        self.value = value
        options, name = self._offered()
        self._setting = True
        try:
            self._buttons.param.update(options=options, value=name)
        finally:
            self._setting = False
        self._changed()

    def zoom(self, event: RangesUpdate) -> None:
        """To what a figure shows since the viewer moved it: that is asked for at its own resolution."""
        self.set(fixed(*(datetime.fromtimestamp(at / 1000, UTC) for at in (event.x0, event.x1))))

    def _pressed(self, event: Any) -> None:
        if self._setting or event.new == _OTHER:
            return
        self.set(Range(event.new))
