"""A page as a parser sees it: elements that open and close, their attributes and texts."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

EMPTY = {"img", "input", "meta"}


class Page(HTMLParser):
    """Parses a page; an element that is closed out of turn is an AssertionError.

    Attributes:
        elements: (name, attributes, path of the names around it), in order.
        texts: (text, path of the names around it), in order.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.texts: list[tuple[str, tuple[str, ...]]] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """Note an element."""
        self.elements.append((tag, dict(attrs), tuple(self._open)))
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close the innermost element, which has to be this one."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note a text."""
        self.texts.append((data, tuple(self._open)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of all elements of a name."""
        return [attributes for name, attributes, _ in self.elements if name == tag]

    def inside(self, tag: str) -> list[str]:
        """Texts directly inside elements of a name."""
        return [text for text, path in self.texts if path and path[-1] == tag]

    @property
    def words(self) -> str:
        """All that is read."""
        return " ".join(text for text, path in self.texts if path and path[-1] not in ("style", "script"))
