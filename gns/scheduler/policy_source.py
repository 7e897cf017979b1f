"""The policy that a scheduler asks: the prior, a folder, a Hub id, or one in memory."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gns.errors import InvalidSettingError, PolicyFormatError
from gns.features.schemas import get_schema
from gns.policy.finding import PRIOR

if TYPE_CHECKING:
    from gns.policy.artefact import GNSPolicy


def frozen_policy(policy: str | Path | GNSPolicy | None) -> GNSPolicy:
    """Return a policy of its own, on the CPU and frozen. The random numbers of the caller stay as they are.

    :param policy: folder or Hub id, a policy (which is copied), or None for the prior, see :mod:`gns.policy.prior`
    :raises PolicyFormatError: if there is no such policy, it is damaged, or its features need validation
    :raises InvalidSettingError: if it is none of these kinds
    """
    from gns.policy.artefact import GNSPolicy  # with the Hub's client, which takes a fifth of a second to import

    if policy is None:
        policy = PRIOR
    if isinstance(policy, GNSPolicy):
        found = copy.deepcopy(policy)
    elif isinstance(policy, str | Path) and str(policy):
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # a new network draws its initial weights
            found = GNSPolicy.from_pretrained(policy)
    else:
        raise InvalidSettingError(f"policy is {policy!r}; expected a folder, a Hub id or a GNSPolicy.")
    features = found.config.decision.features
    if get_schema(features).needs_validation:
        raise PolicyFormatError(
            f"The policy reads features {features!r}, which need a pass over held-out data at every decision; a "
            "scheduler has no such data. Use a policy of schema 'gns-1', or evaluate.py for this one."
        )
    return found.cpu().eval().requires_grad_(False)


def fingerprint(policy: GNSPolicy) -> str:
    """Return a digest of a policy's settings and weights: equal for policies that decide alike."""
    config = policy.to_dict()
    if not policy.config.decision.per_layer:  # digests are those of versions without that mode
        del config["network"]["per_layer"], config["decision"]["layer_base"]
    if not config["decision"]["trust_initial_rate"]:  # likewise
        del config["decision"]["trust_initial_rate"]
    for name, usual in (("levels", 0), ("members", 1)):  # likewise
        if config["network"][name] == usual:
            del config["network"][name]
    digest = hashlib.sha256(json.dumps([config["network"], config["decision"]], sort_keys=True).encode())
    for name, value in sorted(policy.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
