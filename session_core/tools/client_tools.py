"""Tools that a client brings with its request: they are offered to the model, and run at the client."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from session_core.model.events import ToolCall
from session_core.tools.functions import AnyTool


@dataclass(frozen=True)
class ClientTool:
    """A tool of a client. `schema` is its description for the model server."""

    schema: dict[str, Any]


OfferedTools = Mapping[str, AnyTool | ClientTool]


@dataclass(frozen=True)
class ClientTools:
    """The tools of a client, by name, and whether it can be asked for approval of the server's calls."""

    tools: Mapping[str, ClientTool] = field(default_factory=dict)
    can_approve: bool = True

    def beside(self, own: Mapping[str, AnyTool]) -> OfferedTools:
        """All that is offered to the model. Of two tools of the same name it is the client's."""
        offered = {name: tool for name, tool in own.items() if self.can_approve or not tool.may_need_approval}
        return {**offered, **self.tools}


def runnable_tools(tools: OfferedTools) -> dict[str, AnyTool]:
    """Those of the offered tools that run here."""
    return {name: tool for name, tool in tools.items() if not isinstance(tool, ClientTool)}


def find_pending(tools: OfferedTools, calls: Iterable[ToolCall]) -> dict[str, str]:
    """The ids of the calls that do not run now, each with what it waits for: `approval`, or the `client`."""
    found = {}
    for call in calls:
        tool = tools.get(call.name)
        if isinstance(tool, ClientTool):
            found[call.id] = "client"
        elif tool is not None and tool.needs_approval(call.arguments):
            found[call.id] = "approval"
    return found
