"""The parts of an HTML page that needs nothing from elsewhere: strings in, :class:`Html` out.

Whatever is not :class:`Html` is text, and is escaped where it enters an element; so a file name such as ``<script>`` is
shown and never run. The page forbids every request by its content policy (CSP level 3, W3C), and every script but its
own, which it names by its digest. Without JavaScript all of it is readable: tables stand in the order given, and the
pictures that a slider would wipe stand side by side.
"""

import base64
import hashlib
import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal

Cell = str | int | float | None

_TALL = 16
"""Rows from which a table scrolls in its own window."""
_EMPTY_ELEMENTS = ("img", "input", "meta")
# What XML and HTML have no place for: control characters but tabulator and line feed.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Html(str):
    """A string that is HTML already; any other is text."""


def as_html(value: object) -> Html:
    """Text as HTML; what is HTML already stays as it is.

    Control characters, and bytes of a file name that are no text, become a mark of replacement.

    Examples:
        >>> as_html('<b> & "c"')
        '&lt;b&gt; &amp; &quot;c&quot;'
    """
    if isinstance(value, Html):
        return value
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return Html(html.escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)))


def element(tag: str, /, *children: object, **attributes: object) -> Html:
    """An element with its children and attributes.

    Args:
        tag: its name.
        children: HTML, or text; None is left out.
        attributes: underscores in names become hyphens, and one at the end is dropped (``class_``). True writes the
            name alone; None and False leave it out.

    Examples:
        >>> element("p", "a < b", class_="note", hidden=True)
        '<p class="note" hidden>a &lt; b</p>'
    """
    given = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{as_html(value)}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if tag in _EMPTY_ELEMENTS:
        return Html(f"<{tag}{given}>")
    return Html(f"<{tag}{given}>{joined(children)}</{tag}>")


def joined(parts: Iterable[object]) -> Html:
    """HTML and texts one after the other; None is left out."""
    return Html("".join(as_html(part) for part in parts if part is not None))


def rounded(value: object) -> str:
    """A number as people read it: three digits that count, thousands apart, no exponent; other values as text.

    Examples:
        >>> [rounded(value) for value in (12345.6, 12.345, 0.98765, 0.00012345, 7, -0.0)]
        ['12,346', '12.3', '0.988', '0.000123', '7', '0']
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if not math.isfinite(value):
        return "not known" if math.isnan(value) else f"{value}".replace("inf", "infinite")
    if value == 0 or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    digits = max(0, min(12, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{digits}f}"


def number(value: Cell) -> Html:
    """A rounded number that carries its exact value; other values as text."""
    if value is None:
        return Html("not known")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return as_html(value)
    return element("data", rounded(value), value=repr(value))


def section(title: str, *parts: object) -> Html:
    """A part of the page below a heading, to which the contents link."""
    return element("section", element("h2", title), *parts, id=anchor(title))


def anchor(title: str) -> str:
    """The name of a section in links.

    >>> anchor("Data, and their audit")
    'data-and-their-audit'
    """
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def paragraph(*parts: object, kind: str | None = None) -> Html:
    """A paragraph; `kind` is a class of the style sheet, such as ``"note"``."""
    return element("p", *parts, class_=kind)


def bullets(items: Iterable[object]) -> Html:
    """A list of points."""
    return element("ul", *(element("li", item) for item in items))


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Names and what they are; pairs without a value are left out."""
    known = [(name, value) for name, value in pairs if value not in (None, "")]
    return element("dl", *(element("div", element("dt", name), element("dd", value)) for name, value in known))


def tiles(items: Iterable[tuple[str, object, object]]) -> Html:
    """The few numbers that matter most: a name, the number and a remark."""
    boxes = (
        element("div", element("span", name), element("strong", value), element("small", remark), class_="tile")
        for name, value, remark in items
    )
    return element("div", *boxes, class_="tiles")


def details(summary: str, *parts: object) -> Html:
    """What can be opened."""
    return element("details", element("summary", summary), *parts)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    caption: str,
    *,
    sorted_by: tuple[int, Literal["ascending", "descending"]] | None = None,
    sortable: bool = True,
) -> Html:
    """A table; a column whose cells are numbers or empty is sorted by number.

    Args:
        columns: names.
        rows: cells, texts or HTML, as many as columns.
        caption: what it holds.
        sorted_by: a column and the order in which its rows come already.
        sortable: whether a click on a header sorts.
    """
    numeric = [_is_numeric(row[place] for row in rows) for place in range(len(columns))]
    kinds = ["num" if known else None for known in numeric]
    order = {} if sorted_by is None else {sorted_by[0]: sorted_by[1]}
    heads = (
        element("th", name, scope="col", class_=kind, aria_sort=order.get(place, "none") if sortable else None)
        for place, (name, kind) in enumerate(zip(columns, kinds, strict=True))
    )
    lines = (
        element("tr", *(element("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True)))
        for row in rows
    )
    whole = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", element("tr", *heads)),
        element("tbody", *lines),
        class_="sortable" if sortable else None,
    )
    return element(
        "div",
        whole,
        class_="scroll tall" if len(rows) > _TALL else "scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def _is_numeric(cells: Iterable[object]) -> bool:
    texts = [re.sub("<[^>]*>", "", cell) if isinstance(cell, Html) else str(cell) for cell in cells]
    filled = [text for text in texts if text != ""]
    return bool(filled) and all(map(_is_number, filled))


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d[\d,]*\.?\d*|\.\d+)([eE][+-]?\d+)?|nan|-?inf", text) is not None


@dataclass(frozen=True)
class Picture:
    """A picture of the gallery.

    Attributes:
        kind: ``"image"``, ``"prediction"`` or ``"overlay"``, or what else it is called.
        uri: ``data:`` and its bytes.
        width: in pixels.
        height: in pixels.
    """

    kind: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Card:
    """An entry of the gallery.

    Attributes:
        name: of the image.
        remark: what is to be said of it.
        pictures: the first lies below, the others are wiped over it; none where there is nothing to see.
        alarm: whether the remark warns.
    """

    name: str
    remark: str
    pictures: tuple[Picture, ...]
    alarm: bool = False


def gallery(cards: Sequence[Card]) -> Html:
    """Cards side by side, with the choice of what lies on top where there are two answers."""
    upper = list(dict.fromkeys(picture.kind for card in cards for picture in card.pictures[1:]))
    choice = None
    if len(upper) > 1:
        preferred = "overlay" if "overlay" in upper else upper[0]
        buttons = (
            element("label", element("input", type="radio", name="top", value=kind, checked=kind == preferred), kind)
            for kind in upper
        )
        choice = element("fieldset", element("legend", "Wipe between the image and its"), *buttons, class_="choice")
    return element("div", choice, element("div", *map(_card, cards), class_="cards"), class_="gallery")


def _card(card: Card) -> Html:
    words = element(
        "figcaption", element("b", card.name), element("span", card.remark, class_="alarm" if card.alarm else None)
    )
    if not card.pictures:
        return element("figure", words, class_="card")
    first = card.pictures[0]
    layers = [_layer(picture, card.name, place) for place, picture in enumerate(card.pictures)]
    stage = element(
        "div",
        *layers,
        class_="stage",
        style=f"--ratio:{first.width}/{first.height}",
    )
    slider = None
    if len(card.pictures) > 1:
        label = f"Wipe between {first.kind} and {card.pictures[-1].kind} of {card.name}"
        slider = element("input", type="range", min="0", max="100", value="50", aria_label=label)
    return element("figure", stage, slider, words, class_="card wipe" if slider else "card")


def _layer(picture: Picture, name: str, place: int) -> Html:
    shown = element(
        "img",
        src=picture.uri,
        alt=f"{picture.kind} of {name}",
        width=picture.width,
        height=picture.height,
        loading="lazy",
        decoding="async",
        draggable="false",
        class_="small" if max(picture.width, picture.height) < 160 else None,
    )
    kind = "under" if place == 0 else "over"
    return element(
        "div", shown, element("span", picture.kind, class_="tag"), class_=f"layer {kind}", data_kind=picture.kind
    )


def page(title: str, subtitle: str, sections: Mapping[str, Sequence[object]], footer: str, generator: str) -> Html:
    """A whole document.

    Args:
        title: of the page.
        subtitle: a sentence below it.
        sections: parts by their headings, in order.
        footer: a sentence at the end.
        generator: name and version of the program, by which its pages can be told from other files.
    """
    style = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    script = resources.files(__package__).joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="generator", content=generator),
        element("meta", http_equiv="Content-Security-Policy", content=f"{policy}; base-uri 'none'; form-action 'none'"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(style)),
    )
    links = (element("a", name, href=f"#{anchor(name)}") for name in sections)
    body = element(
        "body",
        element("header", element("h1", title), paragraph(subtitle, kind="lead"), element("nav", *links)),
        element("main", *(section(name, *parts) for name, parts in sections.items())),
        element("footer", paragraph(footer)),
        element("script", Html(script)),
    )
    return Html(f"<!doctype html>\n{element('html', head, body, lang='en')}\n")
