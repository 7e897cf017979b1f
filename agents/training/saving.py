"""Saving the policy that a training made: whole or not at all, and elsewhere where it cannot be saved in its place."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from gns.errors import CheckpointError, InvalidSettingError
from gns.policy.artefact import GNSPolicy
from gns.policy.finding import WEIGHTS_FILE
from gns.whole_files import synchronise, written_whole

POLICY = "policy"  # its folder within that of the training
_FINISHED = "finished.json"  # names the training that the policy is of


def save_policy(policy: GNSPolicy, folder: Path, identity: str) -> Path:
    """Save what a training made, and note that it is finished.

    It is written beside its place and renamed, so that a policy that was there is untouched until the new one is whole.

    :param folder: of the training
    :param identity: of the training, see :func:`agents.training.resuming.identity_of`
    :return: the policy's folder
    :raises CheckpointError: if it cannot be saved there, as on a full disk, naming where it was saved instead
    """
    target = folder / POLICY
    try:
        for leftover in folder.glob(f".{POLICY}.*.tmp"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        with written_whole(target) as beside:
            policy.save_pretrained(beside)
            for path in beside.iterdir():
                synchronise(path)
        with written_whole(folder / _FINISHED) as beside:
            beside.write_text(json.dumps({"identity": identity}), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The policy cannot be saved in {target} ({error}). {_kept_elsewhere(policy, folder.name)} Make room; the "
            "same command then goes on from its last checkpoint, and saves it there."
        ) from error
    return target


def _kept_elsewhere(policy: GNSPolicy, name: str) -> str:
    """Save a policy in the first place that takes it, and return a sentence that says which."""
    for place in (Path(tempfile.gettempdir()), Path.home()):
        try:
            kept = tempfile.mkdtemp(prefix=f"gns-{name}-", dir=place)
            policy.save_pretrained(kept)
        except (OSError, SafetensorError):
            continue
        return f"It is kept in {kept}."
    return "Nor can it in the folder for temporary files, or at home."


def require_unfinished(folder: Path, identity: str) -> bool:
    """Say whether a training is yet to be done: False if its policy is there already.

    :param folder: of the training
    :param identity: of the training
    :raises InvalidSettingError: if the policy of another training is there
    """
    policy = folder / POLICY
    if not (policy / WEIGHTS_FILE).exists():
        return True
    try:
        known: Any = json.loads((folder / _FINISHED).read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        known = None
    if known == identity:
        return False
    raise InvalidSettingError(
        f"{policy} holds a finished policy, of a training with other settings or versions, which this one would take "
        "the place of. Choose another name, or set overwrite=true."
    )
