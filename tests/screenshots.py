"""Makes the pictures of the chat page that stand in the README: `python -m tests.screenshots`, in light and in dark.

Needs the Debian packages chromium-headless-shell and chromium-driver.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tests.support import browser
from tests.support.browser import Page
from tests.support.server import ROOT, Server

ANSWER = """Each of you owes **24.15**: the bill comes to 84, with a tip of 15 % it is 96.60, and 96.60 / 4 is 24.15.

For the next evening, as a function:

```python
def share(bill: float, tip: float, people: int) -> float:
    return round(bill * (1 + tip) / people, 2)
```
"""
OTHERS = [
    "Reading list for the winter",
    "Why is the sky dark at night?",
    "ISO 8601 week numbers",
    "Birthday letter to Jo",
    "Bread with half the yeast",
]


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        write_sessions(home / "sessions")
        with Server("-demo", f"-session_dir={home}/sessions", log=home / "log") as server:
            driver = browser.start(home / "profile")
            try:
                page = Page(driver)
                for name, dark in (("page-light", False), ("page-dark", True)):
                    browser.resize(driver, 1200, 760, dark=dark)
                    page.open(server.url, "session-bill")
                    page.wait_until(lambda: len(page.answers) == 2 and len(page.all("#list li")) == len(OTHERS) + 1)
                    (ROOT / "docs").mkdir(exist_ok=True)
                    (ROOT / "docs" / f"{name}.png").write_bytes(driver.get_screenshot_as_png())
            finally:
                driver.quit()


def write_sessions(directory: Path) -> None:
    """Some sessions, of which the first is the newest."""
    directory.mkdir()
    call = {"name": "calculator", "arguments": json.dumps({"expression": "84 * 1.15 / 4"})}
    bill: list[dict[str, Any]] = [
        {
            "role": "user",
            "content": "We were four, the bill was 84 and we want to tip 15 %. What does each of us owe?",
        },
        {"role": "assistant", "content": "", "tool_calls": [{"id": "call_1", "type": "function", "function": call}]},
        {"role": "tool", "content": "24.15", "tool_call_id": "call_1", "name": "calculator"},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "And if Jo is our guest?"},
        {"role": "assistant", "content": "Then the three of you owe **32.20** each."},
    ]
    write(directory, "session-bill", bill, 0)
    for age, title in enumerate(OTHERS, 1):
        messages = [{"role": "user", "content": title}, {"role": "assistant", "content": "Gladly."}]
        write(directory, f"session-{age}", messages, age)


def write(directory: Path, session: str, messages: list[dict[str, Any]], age: int) -> None:
    at = f"2026-01-{30 - age}T12:00:00Z"
    stored = [{"id": f"msg-{index}", **message, "created_at": at} for index, message in enumerate(messages)]
    path = directory / f"{session}.json"
    path.write_text(json.dumps({"id": session, "created_at": at, "updated_at": at, "messages": stored}))
    os.utime(path, (1769774400 - 86400 * age,) * 2)


if __name__ == "__main__":
    main()
