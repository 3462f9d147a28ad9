"""The choice of a range of time, as several pages have it."""

from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from bokeh.core.properties import String
from bokeh.events import RangesUpdate
from bokeh.model import DataModel
from bokeh.models import Button, CustomJS, RadioButtonGroup

from apps.dashboard.frame import when_changed, widget
from apps.dashboard.view import SPANS, Range, fixed

_OTHER = "zoomed"
BESIDE_LABELS = (21, 12, 6, 0)
"""Margin of what has no label, so that it stands beside what has one."""
_SAVE_JS = """
if (!cb_obj.content) return;
const link = document.createElement("a");
link.href = URL.createObjectURL(new Blob([Uint8Array.from(atob(cb_obj.content), (c) => c.charCodeAt(0))]));
link.download = cb_obj.file;
link.click();
URL.revokeObjectURL(link.href);
cb_obj.content = "";
"""


class RangeControl:
    """Buttons for the named spans, and the fixed range that zooming makes."""

    def __init__(self, value: Range, changed: Callable[[], None], spans: tuple[str, ...] = tuple(SPANS)) -> None:
        self.value = value
        self._changed = changed
        self._setting = False
        self._names = list(spans)
        self.view = widget(RadioButtonGroup, **self._offered(), margin=BESIDE_LABELS)
        when_changed(self.view, "active", self._pressed)

    def _offered(self) -> dict[str, Any]:
        if self.value.live and self.value.span is not None:
            return {"labels": self._names, "active": self._names.index(self.value.span)}
        return {"labels": [*self._names, _OTHER], "active": len(self._names)}

    def set(self, value: Range) -> None:
        """Another range, from elsewhere than the buttons."""
        self.value = value
        self._setting = True
        try:
            self.view.update(**self._offered())
        finally:
            self._setting = False
        self._changed()

    def zoom(self, event: RangesUpdate) -> None:
        """To what a figure shows since the viewer moved it: that is asked for at its own resolution."""
        self.set(fixed(*(datetime.fromtimestamp(at / 1000, UTC) for at in (event.x0, event.x1))))

    def _pressed(self) -> None:
        if not self._setting and self.view.active < len(self._names):
            self.set(Range(self._names[self.view.active]))


class SavedFile(DataModel):  # type: ignore[misc]  # Bokeh has no types
    """A file on its way to the browser, which says that it has it by emptying it."""

    file = String()
    content = String()
    """Base64."""


class Download:
    """A button for a file that is made when it is pressed: `make` returns its name and content."""

    def __init__(self, label: str, make: Callable[[], tuple[str, bytes]]) -> None:
        self._make = make
        self._saved = SavedFile()
        self._saved.js_on_change("content", CustomJS(code=_SAVE_JS))
        self.view = widget(Button, label=label, width=150, disabled=True, tags=[self._saved])
        self.view.on_click(self._pressed)

    def _pressed(self) -> None:
        name, content = self._make()
        self._saved.update(file=name, content=b64encode(content).decode())
