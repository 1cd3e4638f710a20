"""The findings as SARIF 2.1.0, which code scanning shows: a result each, at its line of code.

**Source**: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html; what GitHub reads of
it: https://docs.github.com/en/code-security/code-scanning/integrating-with-code-scanning/sarif-support-for-code-scanning
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from precheck.facts.findings import explanations
from precheck.render.parts.json_text import json_text
from precheck.render.parts.source_link import source_link
from precheck.render.parts.words import shown

if TYPE_CHECKING:
    from precheck.records.finding import Finding
    from precheck.records.report import Report

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SarifReport:
    """JSON for code scanning."""

    extension: str = ".sarif"

    def render(self, report: Report) -> str:
        """A log with one run; findings that a baseline accepts are suppressed in it."""
        return json_text(_log(report))


def _log(report: Report) -> dict[str, Any]:
    codes = sorted({finding.code for finding in report.findings})
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "precheck",
                        "version": shown(report.precheck_version),
                        "rules": [_rule(code) for code in codes],
                    }
                },
                "automationDetails": {"id": f"precheck/{shown(report.model.id)}/"},
                "invocations": [{"executionSuccessful": report.complete}],
                "originalUriBaseIds": {
                    "PYTHONPATH": {"description": {"text": "where Python imports packages from"}},
                    "MODEL": {"description": {"text": "the folder of the checkpoint"}},
                },
                "results": [_result(report, finding, codes=codes) for finding in report.findings],
            }
        ],
    }


def _rule(code: str) -> dict[str, Any]:
    explanation = explanations().get(code)
    title = shown(code) if explanation is None else explanation.title
    rule: dict[str, Any] = {"id": shown(code), "shortDescription": {"text": title}}
    if explanation is not None:
        rule["fullDescription"] = {"text": title}
        rule["help"] = {"text": explanation.text, "markdown": explanation.text}
        rule["properties"] = {"tags": ["precision"]}
    return rule


def _result(report: Report, finding: Finding, *, codes: list[str]) -> dict[str, Any]:
    tried = f" {finding.in_vain}" if finding.in_vain else ""
    logical = [
        {"fullyQualifiedName": shown(module), "kind": "module"} for module in finding.modules[:10]
    ]
    location: dict[str, Any] = {"physicalLocation": _physical(finding)}
    if logical:
        location["logicalLocations"] = logical
    result: dict[str, Any] = {
        "ruleId": shown(finding.code),
        "ruleIndex": codes.index(finding.code),
        "level": finding.severity.value,
        "message": {"text": shown(f"{finding.message} {finding.advice}{tried}")},
        "locations": [location],
        "partialFingerprints": {"precheck/v1": _fingerprint(report, finding)},
        "properties": {"confidence": finding.confidence, "model": shown(report.model.id)},
    }
    if finding.snippet:
        result["properties"]["snippet"] = [shown(line) for line in finding.snippet.splitlines()]
    link = source_link(report, source=finding.source, source_file=finding.source_file)
    if link is not None:
        result["hostedViewerUri"] = link
    if finding.accepted is not None:
        result["suppressions"] = [
            {"kind": "external", "status": "accepted", "justification": shown(finding.accepted)}
        ]
    return result


def _physical(finding: Finding) -> dict[str, Any]:
    """The line of modeling code; what no line is to blame for is the config's."""
    name, _, line = (finding.source or "").rpartition(":")
    if not (name and line.isascii() and line.isdigit() and int(line)):
        return {
            "artifactLocation": {"uri": "config.json", "uriBaseId": "MODEL"},
            "region": {"startLine": 1},
        }
    return {
        "artifactLocation": {"uri": _uri(finding.source_file or name), "uriBaseId": "PYTHONPATH"},
        "region": {"startLine": int(line)},
    }


def _uri(path: str) -> str:
    """A relative path as a URI reference."""
    return quote(shown(path).lstrip("/"))


def _fingerprint(report: Report, finding: Finding) -> str:
    """The same finding of the same model, whatever its figures: code, module pattern and op."""
    identifying = "\n".join((report.model.id, *finding.identity))
    return hashlib.sha256(identifying.encode("utf-8", "replace")).hexdigest()[:32]
