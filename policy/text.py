"""Text of another machine or file, made fit for a terminal and a log."""

MAX_SHOWN = 4000
MAX_REASON = 500  # of why something was refused, wherever that is kept, sent or shown


def clean(text: str, limit: int | None = MAX_SHOWN, *, keep: str = "") -> str:
    """Return `text` with escapes for what does not print and is not in `keep`, cut to `limit` characters.

    A terminal obeys escape sequences, and a line break in the middle of a text forges the line after it.
    """
    shown = text[:limit]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in shown)
    if limit is None or max(len(text), len(shown)) <= limit:
        return shown
    return f"{shown[: limit - 1]}…"
