"""What every page has around it: head, navigation, how fresh it is; and the session of one viewer."""

import re
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar
from urllib.parse import unquote, urlencode
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import panel as pn
from bokeh.core.properties import String
from bokeh.document import Document
from bokeh.model import DataModel
from bokeh.models import CustomJS, UIElement
from jinja2 import Environment

from apps.dashboard.cache import Answer, Cache, Question
from apps.dashboard.fleet import Fresh, Freshness
from apps.dashboard.theme import ASSETS, LIGHT, THEMES, WIDGET_CSS
from apps.dashboard.view import Address
from apps.dashboard.words import clock, esc, span

T = TypeVar("T")

TICK_MS = 1000
"""Between two looks of a session at its answers; a new answer is shown without waiting for it."""
UNCONFIRMED_AFTER = timedelta(seconds=10)
"""An answer that was not confirmed for so long is not called live."""
REWRITTEN_AFTER = timedelta(seconds=5)
"""Text with ages in it, where nothing else is new."""
STALE_AFTER = timedelta(seconds=60)
"""Without a commit of Gold for so long, or three of its intervals, the data are not called live."""

_TEMPLATE = Environment(autoescape=False).from_string((ASSETS / "page.html").read_text(encoding="utf-8"))
_PAGE_CSS = "".join((ASSETS / name).read_text(encoding="utf-8") for name in ("page.css", "content.css"))
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24' fill='none' stroke='%230067ad'"
    " stroke-width='2.4'%3E%3Cpath d='M2 12h4l3-8 5 16 3-8h5'/%3E%3C/svg%3E"
)
_UNUSED = re.compile("bokeh-(mathjax|gl|tables)|es-module-shims|extensions/panel")
"""Scripts that Panel sends along and no page needs, since its parts are Bokeh's: 5.8 MB."""
_LOST_JS = "document.body.classList.add('lost')"
_WRITE_JS = """
for (const part of parts ?? [cb_obj])
  document.querySelector(`[data-root-id="${part.id}"]`).innerHTML = part.text;
"""
_ADDRESS_JS = "history.replaceState(null, '', cb_obj.text || location.pathname)"


class Part(DataModel):  # type: ignore[misc]  # Bokeh has no types
    """A part of a page that is HTML: in the page's own tree from its first byte on, before any script runs."""

    text = String()


Block: TypeAlias = Part | UIElement | tuple[UIElement, ...]
"""What cards are made of; a tuple: side by side."""


class Card(NamedTuple):
    """A part of a page: `width` of 12 columns; `bare`: without a frame; `beside`: as tall as so many cards that stand
    beside it, and it scrolls."""

    name: str
    blocks: Sequence[Block]
    width: int = 12
    title: str = ""
    about: str = ""
    bare: bool = False
    beside: int = 0


class Page(Protocol):
    """One page in one session."""

    def cards(self) -> Sequence[Card]:
        """Its parts, in order."""
        ...

    def update(self, now: datetime) -> None:
        """Show the newest answers; called at each tick, so it changes only what is another."""
        ...


class PageKind(NamedTuple):
    """A page: its path, title and one sentence about it, and what makes one."""

    path: str
    title: str
    about: str
    make: Callable[["Session"], Page]


class Session:
    """What a page knows of its viewer, and how it asks."""

    def __init__(self, cache: Cache) -> None:
        cookies = pn.state.cookies
        self.cache = cache
        self.settings = cache.source.settings
        self.theme = THEMES.get(cookies.get("iot_theme", ""), LIGHT)
        self.zone = _zone(unquote(cookies.get("iot_zone", "")))
        self.greeted = "iot_zone" in cookies and "iot_theme" in cookies
        self.address = Address(pn.state.session_args)
        self.query = Part()
        """Of the address as it is to be now."""
        self._asked: set[Question[Any]] = set()
        self._asking: set[Question[Any]] = set()
        self._shown: dict[str, int] = {}
        self._written: dict[str, tuple[tuple[int, ...] | None, datetime]] = {}

    def ask(self, question: Question[T]) -> Answer[T]:
        """The newest answer."""
        self._asked.add(question)
        self._asking.add(question)
        return self.cache.ask(question)

    def asks(self, questions: Collection[Question[Any]]) -> bool:
        """Is one of these what it asked since the tick before the last one?"""
        return not self._asked.isdisjoint(questions)

    def ticked(self) -> None:
        """Forget what was not asked since the last tick."""
        self._asked, self._asking = self._asking, set()

    def is_new(self, part: str, answer: Answer[Any]) -> bool:
        """Is this answer another than what `part` last showed? Notes that it is shown now."""
        if self._shown.get(part) == answer.number:
            return False
        self._shown[part] = answer.number
        return True

    def is_due(self, part: str, now: datetime, *answers: Answer[Any]) -> bool:
        """Is one of these answers another than when `part` was last written, or is what it says of ages too old?"""
        numbers = tuple(answer.number for answer in answers)
        before, at = self._written.get(part, (None, now))
        if numbers == before and now - at < REWRITTEN_AFTER:
            return False
        self._written[part] = numbers, now
        return True

    def forget(self, part: str) -> None:
        """`part` has to be drawn again, whatever it showed."""
        self._shown.pop(part, None)

    def set_query(self, **query: str | Sequence[str]) -> None:
        """Put the view into the address; what is empty is left out."""
        text = urlencode([(name, value) for name, value in query.items() if value], doseq=True)
        self.query.text = f"?{text}" if text else ""

    @property
    def left_out(self) -> str:
        """What of the address is no view, as HTML; "" where all is."""
        ignored = ", ".join(self.address.ignored)
        return f' <span class="state watch">left out: {esc(ignored)}</span>' if ignored else ""

    def clock(self, time: datetime | None, now: datetime) -> str:
        """A time for HTML, in the viewer's zone."""
        return clock(time, self.zone, now)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return ZoneInfo("UTC")


def html(text: str = "") -> Part:
    """A part of a page that is HTML."""
    return Part(text=text)


def show(part: Part, text: str) -> None:
    """Change a part where its text is another."""
    if part.text != text:
        part.text = text


def widget(kind: type[Any], **options: Any) -> Any:
    """A control, with the page's styles."""
    return kind(**{"stylesheets": [WIDGET_CSS], "margin": (0, 12, 6, 0), **options})


def when_changed(control: Any, name: str, act: Callable[[], None]) -> None:
    """Call `act` when a control's property is another; all that it changes goes to the viewer as one message."""

    def changed(_name: str, _old: object, _new: object) -> None:
        with pn.io.unlocked():
            act()

    control.on_change(name, changed)


def note(answer: Answer[Any], session: Session, now: datetime) -> str:
    """What is wrong with an answer, for the part that shows it; "" where all is well."""
    if not answer.problem:
        return ""
    if answer.confirmed is None:
        return f'<div class="note failed">Nothing to show: {esc(answer.problem)}.</div>'
    since = session.clock(answer.confirmed, now)
    return f'<div class="note failed">As of {since}, since then {esc(answer.problem)}.</div>'


def nothing(title: str, text: str = "") -> str:
    """In the place of data that are not there. `text` is HTML."""
    return f'<div class="nothing"><b>{esc(title)}</b>{text}</div>'


def badge(answer: Answer[Fresh], session: Session, now: datetime) -> str:
    """How fresh what is shown is."""
    fresh, confirmed = answer.value, answer.confirmed
    if answer.problem:
        last = f"last fresh {session.clock(confirmed, now)}" if confirmed else "nothing was read yet"
        return _badge("failed", "Not live", f"{esc(answer.problem)}; {last}")
    if fresh is None or confirmed is None:
        return _badge("quiet", "Reading the lake", "")
    if fresh.window is None and fresh.reading is None:
        return _badge("quiet", "No data yet", "the lake is empty")
    if now - confirmed > UNCONFIRMED_AFTER:
        return _badge("stale", "Not live", f"last looked at the lake {session.clock(confirmed, now)}")
    newest = max(time for time in (fresh.reading, fresh.window) if time is not None)
    committed = fresh.committed
    patience = max(STALE_AFTER, timedelta(seconds=3 * session.settings.gold.interval_s))
    if committed is None or now - committed > patience:
        since = f"for {span(now - committed)}" if committed else "in Gold"
        return _badge("stale", f"No new data {since}", f"newest reading {session.clock(newest, now)}")
    return _badge("live", "Live", f"newest reading {span(max(now - newest, timedelta(0)))} ago")


def _badge(state: str, word: str, text: str) -> str:
    return f'<span class="badge {state}"><span class="dot"></span><b>{word}</b><span>{text}</span></span>'


def render(kind: PageKind, pages: Sequence[PageKind], cache: Cache, *, logout: bool) -> None:
    """Make the document of a new session. A browser that has not told its zone yet gets a page that asks for it."""
    session, document = Session(cache), pn.state.curdoc
    full = cache.listeners >= session.settings.dashboard.max_sessions
    document.template = _TEMPLATE
    document.title = kind.title
    document.template_variables.update(
        page_css=_PAGE_CSS,
        unused=_UNUSED,
        heading=kind.title,
        about=kind.about,
        html_attrs=f'data-theme="{session.theme.name}"',
        app_favicon=_ICON,
        greeting=not session.greeted,
        full=full,
        zone=session.zone.key,
        other_theme="light" if session.theme.name == "dark" else "dark",
        logout=logout,
        pages=[{"href": f"./{page.path}", "title": page.title, "current": page.path == kind.path} for page in pages],
    )
    if full or not session.greeted:
        return
    page = kind.make(session)
    fresh = html()

    def tick() -> None:
        now = datetime.now(UTC)
        show(fresh, badge(session.ask(Freshness()), session, now))
        page.update(now)
        session.ticked()

    tick()
    cards = page.cards()
    session.query.js_on_change("text", CustomJS(code=_ADDRESS_JS))
    rows = [(card, [block if isinstance(block, tuple) else (block,) for block in card.blocks]) for card in cards]
    document.template_variables.update(cards=rows, badge=fresh, query=session.query)
    _put(document, [fresh, session.query, *(model for _, blocks in rows for block in blocks for model in block)])
    _keep_ticking(session, document, tick)


def _put(document: Document, models: Sequence[Part | UIElement]) -> None:
    """Have a document show these, each in its place of the template, which knows it by its id."""
    parts = [model for model in models if isinstance(model, Part)]
    write = CustomJS(args={"parts": None}, code=_WRITE_JS)
    for part in parts:
        part.js_on_change("text", write)
    with document.models.freeze():  # the models below are gathered once, and not again for each of these
        for model in models:
            model.name = model.id
            document.add_root(model)
    # What became another between the page and its document.
    document.js_on_event("document_ready", CustomJS(args={"parts": parts}, code=_WRITE_JS))
    document.js_on_event("connection_lost", CustomJS(code=_LOST_JS))


def _keep_ticking(session: Session, document: Document, tick: Callable[[], None]) -> None:
    """Tick each second and at each new answer to what it asked, as long as the session lives."""
    waiting = [False]

    def woken() -> None:
        waiting[0] = False
        together()

    def together() -> None:
        with pn.io.unlocked():  # one message for all that changes
            tick()

    def wake(changed: Collection[Question[Any]]) -> None:
        if not waiting[0] and document.session_context is not None and session.asks(changed):
            waiting[0] = True
            document.add_next_tick_callback(woken)

    silence = session.cache.listen(wake)
    document.add_periodic_callback(together, TICK_MS)
    document.on_session_destroyed(lambda _: silence())
