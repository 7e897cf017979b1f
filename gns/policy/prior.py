"""The prior: a policy that never acts, in action mode ``prior``. It is profile REX from the calibrated default rate.

It stands as a folder of two files beside this package, and goes by the name ``prior`` wherever a policy is given.
"""

from __future__ import annotations

import torch

from gns.deciding.config import DecisionConfig
from gns.policy.artefact import GNSPolicy, PolicyConfig
from gns.policy.network import NO_GRAPH, NetworkConfig


def prior_policy() -> GNSPolicy:
    """Return the prior. Its network is as small as one can be, and its weights are 0, as its actions are."""
    network = NetworkConfig(convolution=NO_GRAPH, type_embedding=1, hidden=1, head=1)
    policy = GNSPolicy(PolicyConfig(network=network, decision=DecisionConfig(mode="prior")))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
    return policy.eval()
