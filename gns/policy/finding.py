"""Where a policy's files are: in a folder, or on the Hub, from which nothing too large for a policy is fetched."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from gns.errors import PolicyFormatError
from gns.policy.files import MAX_CONFIG_BYTES, MAX_FILE_BYTES

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
_MAX_BYTES = {CONFIG_FILE: MAX_CONFIG_BYTES, WEIGHTS_FILE: MAX_FILE_BYTES, CARD_FILE: MAX_CONFIG_BYTES}
PRIOR, PRIOR_FOLDER, BUNDLED = "prior", Path(__file__).parents[1] / "prior", Path(__file__).parents[1] / "pretrained"
_NAMED = {PRIOR: PRIOR_FOLDER, "learned": BUNDLED}
_RESULTS = "outputs"  # the folder of results, see train_agent.py: never a user of the Hub
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_logger = logging.getLogger(__name__)


def find_policy(source: str | Path, card: bool = False, **wanted: Any) -> dict[str, Path]:
    """Return where a policy's files are on this machine, by name, from the Hub if it is the id of a repository there.

    A Hub id has the form ``user/name``, and is text. What is a folder here is never looked for on the Hub, and no more
    is a missing one whose first part is a folder here, or ``outputs``: a slip of the keyboard must not fetch a
    stranger's policy. That the Hub is asked is logged as a warning. The texts ``prior`` and ``learned`` are the
    policies that come with this package, see :mod:`gns.policy.prior`; a folder of such a name is ``./prior``.

    :param source: folder or Hub id
    :param card: find its model card too, if there is one
    :param wanted: ``revision``, ``cache_dir``, ``force_download``, ``local_files_only``, ``token`` of a Hub id
    :raises PolicyFormatError: if there is none, or a file is missing, or too large for a policy
    """
    names = [CONFIG_FILE, WEIGHTS_FILE, *([CARD_FILE] if card else [])]
    source = _NAMED.get(str(source), source) if isinstance(source, str) else source
    if os.path.isdir(source):
        return {name: _in_folder(Path(source), name) for name in names if name != CARD_FILE or _is_file(source, name)}
    if os.path.isfile(source):  # False where a name is too long for one
        raise PolicyFormatError(
            f"{source} is a file; expected the folder of a policy, with {CONFIG_FILE} and {WEIGHTS_FILE}, or a Hub id. "
            "Pickled checkpoints are not read."
        )
    _require_hub_id(source)
    _logger.warning(
        "Asking the Hugging Face Hub for policy %s, %s.",
        *(source, f"revision {wanted['revision']}" if wanted.get("revision") else "whatever revision is the newest"),
    )
    found = {name: _from_hub(str(source), name, wanted) for name in names}
    return {name: path for name, path in found.items() if path is not None}


def _is_file(folder: str | Path, name: str) -> bool:
    return os.path.isfile(Path(folder) / name)


def _in_folder(folder: Path, name: str) -> Path:
    if not _is_file(folder, name):
        raise PolicyFormatError(
            f"{folder} has no {name}. Expected a folder written by save_pretrained with {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}; pickled checkpoints are not read."
        )
    return folder / name


def _require_hub_id(source: str | Path) -> None:
    """Pass what looks like a Hub id, and not like a folder's path.

    :raises PolicyFormatError: on anything else
    """
    first = str(source).partition("/")[0]
    if isinstance(source, str) and _HUB_ID.fullmatch(source):
        if first != _RESULTS and not os.path.isdir(first):
            return
        what = f"{source!r} is a path, since {first} is a folder of results or one that is here, and there is none"
    else:
        what = f"There is no folder {str(source)[:200]!r}, and a Hub id has the form user/name"
    raise PolicyFormatError(
        f"No policy at {str(source)[:200]!r}: {what}. Check the path; or train the policy first: "
        "python train_agent.py name=NAME writes the folder outputs/NAME/policy."
    )


def _from_hub(source: str, name: str, wanted: dict[str, Any]) -> Path | None:
    """Fetch a file of a repository, if its size is a policy's; None for a card that is not there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        if not wanted.get("local_files_only"):
            _check_remote_size(source, name, wanted)
        return Path(hf_hub_download(repo_id=source, filename=name, **wanted))
    except PolicyFormatError:
        raise
    except Exception as error:  # the Hub's client raises several kinds
        if name == CARD_FILE:
            return None
        if isinstance(error, RemoteEntryNotFoundError):
            raise PolicyFormatError(f"The Hub repository {source!r} has no {name}; expected a GNS policy.") from error
        raise PolicyFormatError(
            f"No policy at {source!r}: it is no folder here, and the Hub did not give it ({type(error).__name__}: "
            f"{error}). Check the path or the id, or the network."
        ) from error


def _check_remote_size(source: str, name: str, wanted: dict[str, Any]) -> None:
    """Refuse a file of the Hub that is too large for a policy, before it fills the disk."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return
    try:
        url = hf_hub_url(source, name, revision=wanted.get("revision"))
        size = get_hf_file_metadata(url, token=wanted.get("token")).size
    except Exception:  # the Hub's client raises several kinds
        return  # the download itself says what is wrong, or finds the file in the cache
    if size is not None and size > _MAX_BYTES[name]:
        raise PolicyFormatError(
            f"{name} of {source!r} has {size:,} bytes on the Hub; expected at most {_MAX_BYTES[name]:,} for a policy."
        )
