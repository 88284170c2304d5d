"""Tables within hand-written pages, between marks that readers do not see."""

from collections.abc import Callable, Mapping


def rewritten(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """The text with what stands between the marks `<!-- NAME:begin -->` and `<!-- NAME:end -->` made anew.

    Raises:
        ValueError: the text has no such marks.
    """
    for name, table in tables.items():
        before, begin, rest = text.partition(f"<!-- {name}:begin -->\n")
        _, end, after = rest.partition(f"<!-- {name}:end -->")
        if not begin or not end:
            raise ValueError(f"there are no lines <!-- {name}:begin --> and <!-- {name}:end -->")
        text = f"{before}{begin}{table()}{end}{after}"
    return text
