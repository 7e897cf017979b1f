"""The graph network of a policy, and the file it is kept in."""

from gns.policy.artefact import GNSPolicy

__all__ = ["GNSPolicy"]
