"""The bounds of one run: its time and the size of its answers."""

import time

from session_core.model.cancellation import Cancellation
from session_core.model.events import Cancelled, ModelError

MAX_ANSWER_BYTES = 8 << 20  # of text, tool calls and reasoning in one run


class Budget:
    """The time and the bytes that one run may still use."""

    def __init__(self, cancellation: Cancellation, timeout: float) -> None:
        self.cancellation = cancellation
        self._deadline = time.monotonic() + timeout
        self._bytes = 0

    def remaining(self) -> float:
        """The seconds that are left. Raises Cancelled, or ModelError when none are."""
        if self.cancellation.is_cancelled:
            raise Cancelled
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise ModelError("model_timeout", "The model server did not answer in time.")
        return left

    def use(self, size: int) -> None:
        """Counts so many bytes of an answer. Raises ModelError where the run has too many."""
        self._bytes += size
        if self._bytes > MAX_ANSWER_BYTES:
            raise ModelError("model_error", "The model's answer is too long.")
