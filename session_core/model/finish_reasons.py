"""What a finish reason means, in the words of every server that we know."""

from typing import Literal

Meaning = Literal["completed", "length", "content_filter", "no_finish_reason", "failed"]

_MEANINGS: dict[str, Meaning] = {
    "null": "no_finish_reason",  # KoboldCpp, DashScope, in each chunk
    "none": "no_finish_reason",  # gateways in Python
    "finish_reason_unspecified": "no_finish_reason",  # Gemini
    "length": "length",  # OpenAI
    "max_tokens": "length",  # Anthropic, Gemini, Cohere, and gateways to them
    "model_length": "length",  # Mistral
    "model_context_window_exceeded": "length",  # z.ai, Anthropic
    "content_filter": "content_filter",  # OpenAI, Azure
    "safety": "content_filter",  # Gemini
    "recitation": "content_filter",  # Gemini
    "prohibited_content": "content_filter",  # Gemini
    "blocklist": "content_filter",  # Gemini
    "sensitive": "content_filter",  # z.ai
    "refusal": "content_filter",  # Anthropic
    "guardrail_intervened": "content_filter",  # Bedrock
    "content_filtered": "content_filter",  # Bedrock
    "blocked": "content_filter",  # gateways
    "spii": "content_filter",  # Gemini
    "max_output_tokens": "length",  # gateways to OpenAI's Responses
    "max_output_reached": "length",  # gateways
    "repetition": "length",  # servers that end a loop
    "error": "failed",  # OpenRouter
    "abort": "failed",  # vLLM, SGLang
    "cancelled": "failed",  # gateways
    "timeout": "failed",  # gateways
    "network_error": "failed",  # z.ai
    "insufficient_system_resource": "failed",  # DeepSeek
    "malformed_function_call": "failed",  # Gemini
}


def classify_finish_reason(finish_reason: str | None) -> Meaning:
    """What a finish reason means, in any case of letters. One that is not in the table means a complete answer."""
    if not finish_reason or finish_reason.isspace():
        return "no_finish_reason"
    return _MEANINGS.get(finish_reason.strip().lower(), "completed")
