"""`StopSearch`: whether a growing sequence of tokens may just have completed a stop string, at a cost that stays small.

Owns the window of newest tokens that is decoded for each token; decoding everything each time would take a time that
grows with the square of the length. Says "perhaps": `Sequence` decodes all tokens then, and that decides.
One idea: the text of the newest tokens ends as the whole text does, up to a few characters at the window's beginning,
where a token is half of a character or the first token's space is left out. So the window moves on only while it holds
more text than the longest stop string and those few characters, and only to where a character begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNKNOWN = "\ufffd"  # what stands for the bytes of a character that is not complete, or is none
UNSETTLED_CHARACTERS = 8  # at both ends of the window together
BYTES_A_CHARACTER = 4
FIRST_TOKENS = 16


class StopSearch:
    """Searches for `stops` while tokens are appended.

    Invariant: no stop string ends before the window's last characters, or `may_be_complete` said so.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._start = 0  # of the window
        self._tokens = FIRST_TOKENS  # kept in the window when it moves on
        self._needed = max(map(len, stops), default=0) + UNSETTLED_CHARACTERS
        self._always = any(UNKNOWN in stop for stop in stops)  # a window may have none where the whole text has some

    def may_be_complete(self, decode: Callable[[list[int]], str], tokens: list[int], first: int) -> bool:
        """Whether a stop string may be in the text of tokens[first:]; False: it is not, up to the newest token."""
        if not self._stops or self._always:
            return self._always
        text = decode(tokens[first + self._start :])
        if any(stop in text for stop in self._stops):
            return True
        if len(tokens) - first - self._start >= 2 * self._tokens:
            self._move_on(decode, tokens, first)
        return False

    def _move_on(self, decode: Callable[[list[int]], str], tokens: list[int], first: int) -> None:
        latest = len(tokens) - self._tokens
        for start in range(latest, latest - BYTES_A_CHARACTER, -1):
            text = decode(tokens[start:])
            if len(text) < self._needed:
                self._tokens *= 2
                return
            if not text.startswith(UNKNOWN):
                self._start = start - first
                return
