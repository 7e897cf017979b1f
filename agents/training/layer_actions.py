"""What PPO's policy needs for actions of layers, of which graphs in one batch have different numbers.

The features extractor gives one row a graph: embedding (hidden), mean actions of M layers, and which of them the graph
has (M). The critic reads the embedding alone. What an action space has beyond the layers of a graph is left out of
probabilities and entropy, and acts as 0.
"""

from __future__ import annotations

from typing import cast

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.distributions import Normal

from envs.padding import pad_layers, unpad
from gns.policy.network import GraphEncoder, LayerActor


class LayerFeatures(BaseFeaturesExtractor):
    """SB3's features extractor: unpads B observations with room for M layers, and encodes graphs and layers."""

    def __init__(self, observation_space: spaces.Space, encoder: GraphEncoder, width: int, actor: LayerActor) -> None:
        super().__init__(observation_space, features_dim=width)
        self.encoder, self.layer_actor = encoder, actor

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Return embeddings, mean actions of layers and which there are, (B, hidden + 2 M)."""
        batch = unpad(observations)
        embedding, layers = self.encoder.graphs_and_layers(batch)
        means, present = pad_layers(self.layer_actor(embedding, layers, batch.graph), observations)
        return torch.cat([embedding, means, present.to(means)], dim=1)


class LayerHeads(nn.Module):
    """In the place of SB3's ``MlpExtractor``: the actor gets all features, the critic the embedding.

    :param width: of the embedding
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.latent_dim_pi = self.latent_dim_vf = self._width = width

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the actor and what the critic reads."""
        return features, self.forward_critic(features)

    def forward_actor(self, features: Tensor) -> Tensor:
        """Return what the actor reads."""
        return features

    def forward_critic(self, features: Tensor) -> Tensor:
        """Return what the critic reads."""
        return features[:, : self._width]


class LayerGaussian(DiagGaussianDistribution):
    """A normal law of the shared action and of those of the layers that a graph has; all others are 0.

    :param present: bool (B, 1 + M)
    """

    def __init__(self, present: Tensor) -> None:
        super().__init__(present.shape[1])
        self._present = present

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return the logarithm of the density, (B,)."""
        return self._sum(self.distribution.log_prob(actions))

    def entropy(self) -> Tensor:
        """Return the entropy, (B,)."""
        return self._sum(self.distribution.entropy())

    def sample(self) -> Tensor:
        """Draw actions, (B, 1 + M)."""
        return self._of_present(self.distribution.rsample())

    def mode(self) -> Tensor:
        """Return the mean, (B, 1 + M)."""
        return self._of_present(self.distribution.mean)

    def _of_present(self, values: Tensor) -> Tensor:
        return torch.where(self._present, values, torch.zeros_like(values))

    def _sum(self, values: Tensor) -> Tensor:
        return self._of_present(values).sum(dim=1)


def layer_distribution(actor: nn.Module, log_std: Tensor, features: Tensor, width: int) -> LayerGaussian:
    """Return the law of the actions.

    :param actor: mean of the shared action from an embedding
    :param log_std: (2,), logarithms of the standard deviations of the shared action and of all layers' actions
    :param features: (B, width + 2 M), see :class:`LayerFeatures`
    :param width: of the embedding
    """
    means, present = cast(tuple[Tensor, Tensor], features[:, width:].chunk(2, dim=1))
    mean = torch.cat([actor(features[:, :width]), means], dim=1)
    there = torch.cat([torch.ones_like(present[:, :1]), present], dim=1) > 0.5
    law = LayerGaussian(there)
    deviations = torch.cat([log_std[:1], log_std[1:].expand(means.shape[1])]).exp()
    law.distribution = Normal(mean, deviations.expand_as(mean))
    return law
