"""How a finding about a server is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.records.finding import Confidence, Finding, Severity

if TYPE_CHECKING:
    from precheck.served.evidence import Evidence

VLLM, LLAMA_CPP = "vllm", "llama.cpp"

FLAGS: dict[str, dict[str, str]] = {
    "PC801": {
        VLLM: "vllm serve --tokenizer DIR",
        LLAMA_CPP: "--override-kv tokenizer.ggml.add_bos_token=bool:true (or false)",
    },
    "PC802": {
        VLLM: "vllm serve --chat-template FILE",
        LLAMA_CPP: "llama-server --jinja --chat-template-file FILE",
    },
    "PC803": {VLLM: "vllm serve --max-model-len N", LLAMA_CPP: "llama-server --ctx-size N"},
    "PC810": {VLLM: "vllm serve --dtype DTYPE", LLAMA_CPP: "convert_hf_to_gguf.py --outtype TYPE"},
    "PC811": {VLLM: "vllm serve --revision COMMIT", LLAMA_CPP: "llama-server --model FILE"},
    "PC812": {VLLM: "vllm serve --logprobs-mode raw_logprobs --generation-config vllm"},
    "PC813": {
        VLLM: "vllm serve --logprobs-mode raw_logprobs --generation-config vllm",
        LLAMA_CPP: "llama-server --top-k 0 --top-p 1 --min-p 0",
    },
    "PC814": {
        VLLM: "vllm serve --generation-config vllm",
        LLAMA_CPP: "llama-server --repeat-penalty 1",
    },
    "PC815": {
        VLLM: "vllm serve --generation-config vllm",
        LLAMA_CPP: "llama-server --temp 0",
    },
    "PC816": {
        VLLM: "vllm serve --kv-cache-dtype auto",
        LLAMA_CPP: "llama-server --cache-type-k f16 --cache-type-v f16",
    },
    "PC817": {
        VLLM: "vllm serve --no-enable-prefix-caching",
        LLAMA_CPP: "llama-server --parallel 1 --no-cache-prompt",
    },
    "PC818": {VLLM: "vllm serve --dtype bfloat16", LLAMA_CPP: "llama-server --flash-attn off"},
}
"""What to change, by code and engine.

**Sources**: https://docs.vllm.ai/en/latest/configuration/engine_args.html,
https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""


def finding(
    evidence: Evidence,
    code: str,
    message: str,
    *,
    advice: str,
    severity: Severity = Severity.ERROR,
    probes: tuple[str, ...] = (),
) -> Finding:
    """A finding, whose advice ends with what to change in this engine.

    Args:
        evidence: of the server.
        code: of the finding.
        message: what, where, evidence and consequence.
        advice: the next step.
        severity: how much it matters.
        probes: prompts that show it, the first of them.
    """
    flag = FLAGS.get(code, {}).get(evidence.server.engine or "")
    return Finding(
        code=code,
        severity=severity,
        confidence=Confidence.MEASURED,
        message=message,
        advice=f"{advice} Here: {flag}." if flag else advice,
        probes=probes,
    )
