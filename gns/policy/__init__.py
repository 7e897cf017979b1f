"""The graph network of a policy, and the file it is kept in."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gns.policy.artefact import GNSPolicy

__all__ = ["GNSPolicy"]


def __getattr__(name: str) -> Any:
    """Import the policy, with the Hub's client, where it is asked for."""
    if name == "GNSPolicy":
        from gns.policy.artefact import GNSPolicy

        return GNSPolicy
    raise AttributeError(f"module 'gns.policy' has no attribute {name!r}")
