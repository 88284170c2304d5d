"""The text of one answer as its tokens come, up to the first stop string in it."""

from collections.abc import Sequence

from server.text.tokenization import TextStream


class AnswerText:
    """What its tokens say, joined, is `text`. Text that may be the beginning of a stop string is held back."""

    def __init__(self, stream: TextStream, stops: Sequence[str] = ()) -> None:
        """`stops`: the text ends before the first of them that comes; each has at least one character."""
        self.text = ""
        self.stopped = False  # whether a stop string came; no token is to follow then
        self._stream = stream
        self._stops = stops
        self._held = ""

    def push(self, token: int) -> str:
        """The text that `token` adds: "" where it is held back, or where its character is not complete."""
        return self._take(self._stream.push(token))

    def finish(self, token: int) -> str:
        """The text that the last token adds, with what was held back."""
        added = self._take(self._stream.finish(token))
        rest, self._held = self._held, ""
        self.text += rest
        return added + rest

    def _take(self, added: str) -> str:
        if self.stopped:
            return ""
        text = self._held + added
        end = first_stop(text, self._stops)
        if end is None:
            end = len(text) - beginning_of_a_stop(text, self._stops)
            self._held = text[end:]
        else:
            self.stopped, self._held = True, ""
        self.text += text[:end]
        return text[:end]


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the stop string begins that is complete first, reading from the left; None where there is none."""
    found = [(begin + len(stop), begin) for stop in stops if (begin := text.find(stop)) >= 0]
    return min(found)[1] if found else None


def beginning_of_a_stop(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text`, which holds no stop string, may be the beginning of one."""
    return max((_overlap(text, stop) for stop in stops), default=0)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
