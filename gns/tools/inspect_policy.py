"""What a policy is and whether it can be used, told from its files alone. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickletools
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gns.deciding.config import DecisionConfig
from gns.errors import PolicyFormatError
from gns.features.schemas import get_schema
from gns.policy.artefact import GNSPolicy
from gns.policy.files import MAX_FILE_BYTES, own_file, read_bounded
from gns.policy.finding import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, find_policy
from gns.tools.console import print_line, print_table

_PICKLE_SUFFIXES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
_MAX_SCANNED_BYTES = 2**20  # pickles of protocols 0 and 1 have no mark at their start and are read to their end


def inspect_policy(source: str, revision: str | None = None) -> tuple[dict[str, Any], PolicyFormatError | None]:
    """Describe a policy.

    :param source: folder or Hub id
    :param revision: branch, tag or commit of a Hub id
    :return: plain JSON values, and why the policy cannot be used: ``None`` for one that can. Of one that cannot, only
        its files are described
    """
    report: dict[str, Any] = {"policy": source, "valid": False}
    try:
        folder = _folder(source, revision)
        report["folder"] = str(folder)
        report["files"] = [describe_file(path) for path in _files_of(folder)]
        report.update(_describe(folder, report["files"]))
    except (PolicyFormatError, OSError) as error:
        named = (
            error if isinstance(error, PolicyFormatError) else PolicyFormatError(f"{source} cannot be read: {error}.")
        )
        report["problem"] = str(named)
        return report, named
    report["valid"] = True
    return report, None


def describe_file(path: Path) -> dict[str, Any]:
    """Return name, size in bytes, sha256 and kind of a file: the latter ``None`` where it is missing or too large.

    A kind is ``"pickle"``, ``"safetensors"``, ``"text"`` or ``"unknown"``, told from the content; ``"link"`` of what
    lies elsewhere, which is not read.
    """
    described: dict[str, Any] = {"name": path.name, "bytes": None, "sha256": None, "kind": None}
    if path.is_file():
        try:
            described["bytes"] = own_file(path).stat().st_size
        except PolicyFormatError:
            return described | {"kind": "link"}
        if described["bytes"] <= MAX_FILE_BYTES:
            content = read_bounded(path, MAX_FILE_BYTES)
            described.update(sha256=hashlib.sha256(content).hexdigest(), kind=kind_of(content))
    return described


def kind_of(content: bytes) -> str:
    """Say what a file's content is, without running any of it; see :func:`describe_file`."""
    header = int.from_bytes(content[:8], "little")
    if content[8:9] == b"{" and header <= len(content) - 8:
        return "safetensors"
    if _is_pickle(content):
        return "pickle"
    try:
        return "text" if "\x00" not in content.decode("utf-8") else "unknown"
    except UnicodeDecodeError:
        return "unknown"


def print_policy(report: dict[str, Any]) -> None:
    """Print what :func:`inspect_policy` returned as text."""
    print_line(f"policy {report['policy']}: {'valid' if report['valid'] else 'NOT VALID'}")
    if report["valid"]:
        features, action, network = report["features"], report["action"], report["network"]
        shape = ", ".join(f"{key} {_text(value)}" for key, value in network.items() if key != "parameters")
        rows = [
            ("format version", _text(report["format_version"])),
            ("action mode", f"{action['mode']}: {action['formula']}, a in [-1, 1]"),
            ("rates", f"within [{action['min_lr']:g}, {action['max_lr']:g}]"),
            ("decisions", report["decisions"]["rule"]),
            ("network", f"{network['parameters']:,} parameters; {shape}"),
            ("features", f"{features['schema']}, each in [-{features['bound']:g}, {features['bound']:g}]"),
            ("of a layer", ", ".join(features["node"]) or "none"),
            ("of the run", ", ".join(features["global"]) or "none"),
            ("held-out data", "a pass before every decision" if features["needs_validation"] else "not needed"),
        ]
        print_table("settings", ("", ""), rows)
        training = [(key.replace("_", " "), _text(value)) for key, value in report["trained_on"].items()]
        training += [(key, _text(value)) for key, value in report["training"].items()]
        print_table("trained on", ("", ""), training or [("not recorded", "")])
    if "files" in report:
        print_table("files", ("name", "bytes", "kind", "sha256"), [_file_row(row) for row in report["files"]])
    for name in report.get("pickles", ()):
        print_line(f"note: {name} is no part of the policy and is not read; it looks like a pickle.")


# ---------------------------------------------------------------------- inside


def _folder(source: str, revision: str | None) -> Path:
    """Return the local folder of a policy."""
    if os.path.isdir(source):
        return Path(source)
    if os.path.isfile(source):
        kind = describe_file(Path(source))["kind"]
        what = "a pickle, and a policy is never unpickled" if kind == "pickle" else "a file"
        raise PolicyFormatError(
            f"{source} is {what}. Expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, as save_pretrained writes, "
            "or a Hub id."
        )
    return find_policy(source, card=True, revision=revision)[CONFIG_FILE].parent


def _files_of(folder: Path) -> list[Path]:
    """The two files of a policy whether they exist or not, its card, and what looks like a pickled checkpoint."""
    others = [p for p in sorted(folder.iterdir()) if p.name == CARD_FILE or p.suffix.lower() in _PICKLE_SUFFIXES]
    return [folder / CONFIG_FILE, folder / WEIGHTS_FILE, *(path for path in others if path.is_file())]


def _describe(folder: Path, files: list[dict[str, Any]]) -> dict[str, Any]:
    """Load a policy and tell what it is.

    :raises PolicyFormatError: if it cannot be used
    """
    for file in files[:2]:
        if file["kind"] == "pickle":
            raise PolicyFormatError(
                f"{folder / file['name']} is a pickle, and a policy is never unpickled. Expected JSON in {CONFIG_FILE} "
                f"and safetensors in {WEIGHTS_FILE}; save the policy with save_pretrained."
            )
    try:
        policy = GNSPolicy.from_pretrained(folder)
        config = policy.config
        described = json.loads(json.dumps(asdict(config)), parse_constant=str)  # NaN is no JSON for other readers
    except RecursionError as error:
        raise PolicyFormatError(f"{folder / CONFIG_FILE} is nested too deeply; expected a GNS policy's.") from error
    schema = get_schema(config.decision.features)
    pickles = [file["name"] for file in files[2:] if file["name"] != CARD_FILE]
    return {
        "format_version": config.format_version,
        "features": {
            "schema": schema.name,
            "node": list(schema.node),
            "global": list(schema.globals),
            "bound": schema.bound,
            "needs_validation": schema.needs_validation,
        },
        "action": {
            "mode": config.decision.mode,
            "formula": config.decision.action_mode.described(config.decision),
            "min_lr": config.decision.min_lr,
            "max_lr": config.decision.max_lr,
        },
        "decisions": {
            "num_decisions": config.decision.num_decisions,
            "decision_interval": config.decision.decision_interval,
            "rule": decision_rule(config.decision),
        },
        "network": {**described["network"], "parameters": sum(p.numel() for p in policy.parameters())},
        "decision": described["decision"],
        "training": described["training"],
        "trained_on": described["trained_on"],
        "pickles": pickles,
    }


def decision_rule(decision: DecisionConfig) -> str:
    """Return when decisions are taken, in words."""
    if decision.decision_interval is not None:
        return f"one every {decision.decision_interval} updates, whatever the budget T"
    return f"{decision.num_decisions} a run, one every ceil(T/{decision.num_decisions}) of T updates"


def _is_pickle(content: bytes) -> bool:
    """Say whether content is a pickle: by its first bytes, inside torch's archive, or by its operations' names."""
    if content[:1] == b"\x80" and content[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    if content.startswith(b"PK\x03\x04"):
        try:
            names = zipfile.ZipFile(io.BytesIO(content)).namelist()
        except (zipfile.BadZipFile, ValueError, RuntimeError):  # the last: a zip of a newer format
            return b"data.pkl" in content[:4096]  # truncated: the first entry of what torch.save writes
        return any(name.endswith(".pkl") for name in names)
    if not 1 < len(content) <= _MAX_SCANNED_BYTES:
        return False
    end = -1
    try:
        for operation, _, position in pickletools.genops(content):  # reads operations, runs none
            end = (position or 0) if operation.name == "STOP" else -1
    except Exception:  # whatever stands in the way of reading it as a pickle
        return False
    return end == len(content) - 1


def _file_row(file: dict[str, Any]) -> tuple[str, str, str, str]:
    if file["bytes"] is None:
        return file["name"], "", file["kind"] or "MISSING", ""
    return file["name"], f"{file['bytes']:,}", file["kind"] or "not read", file["sha256"] or "too large"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
