"""The models that callers may choose."""

from collections.abc import Collection

from agent import Agent


class ModelRefused(Exception):
    """The model is not one that callers may choose. The text names those, for people."""


class ModelChoice:
    """The agent's own model, and `others` by name. None means any."""

    def __init__(self, agent: Agent, others: Collection[str] | None) -> None:
        self.agent = agent
        self._others = others

    def names(self) -> list[str]:
        """The models, the agent's own first. Where callers may choose any: those that the model server lists."""
        others = self.agent.list_models() if self._others is None else self._others
        return list(dict.fromkeys([self.agent.model, *others]))

    def check(self, model: str | None) -> None:
        """Raises ModelRefused where callers may not choose this model. None is the agent's own."""
        if model not in (None, self.agent.model) and self._others is not None and model not in self._others:
            raise ModelRefused(f"model must be one of these: {', '.join(self.names())}.")
