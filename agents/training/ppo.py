"""PPO (Schulman et al., 2017; Stable-Baselines3's) with the graph network of :mod:`gns.policy.network`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import Tensor, nn

from agents.training.layer_actions import LayerFeatures, LayerHeads, layer_distribution
from envs.batched.composite import make_vector
from envs.engine import PROCESSES, EngineConfig
from envs.env_config import EnvConfig
from envs.memory import keep_freed_memory
from envs.padding import unpad
from envs.plain_state import loading
from envs.tasks import Task
from envs.vector_state import load_state_of, state_of
from gns.deciding.action_modes import modes_by_layer
from gns.deciding.config import DecisionConfig
from gns.errors import InvalidSettingError
from gns.policy.artefact import GNSPolicy, PolicyConfig
from gns.policy.network import GNSNetwork, NetworkConfig
from gns.policy.trained_on import TrainedOn


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO; names as in Stable-Baselines3.

    :param num_envs: environments side by side; a rollout mixes all tasks
    :param together: whether runs of one task and optimizer are trained together, where that is faster; each pair then
        has as many of the environments as any other. Otherwise every episode draws its task and optimizer
    :param episodes_per_rollout: episodes between two updates of the policy; below ``num_envs``: parts of episodes
    :param batch_size: decisions a gradient step
    :param final_learning_rate: share of ``learning_rate`` left at the end; it falls linearly
    :param final_ent_coef: coefficient of the entropy at the end; it goes linearly from ``ent_coef``
    :param log_std: logarithm of the standard deviation of actions at the start; where layers have actions, they share
        a second one, which starts there too
    :param learn_std: whether it is learned
    :param target_kl: stop the passes over a rollout when the policy has moved this far
    :param network: shape of the graph network; :class:`agents.training.train.TrainConfig` gives it the actors that the
        action mode asks for
    """

    num_envs: int = 64
    together: bool = True
    episodes_per_rollout: int = 64
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.1
    n_epochs: int = 10
    batch_size: int = 320
    gamma: float = 1.0
    gae_lambda: float = 1.0
    clip_range: float = 0.2
    ent_coef: float = 0.0
    final_ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    target_kl: float | None = 0.03
    log_std: float = -1.4
    learn_std: bool = True
    network: NetworkConfig = field(default_factory=NetworkConfig)

    def entropy_coefficient(self, remaining: float) -> float:
        """Return the coefficient of the entropy.

        :param remaining: share of the training that is to come, 1 to 0
        """
        return self.final_ent_coef + (self.ent_coef - self.final_ent_coef) * remaining


class GraphFeatures(BaseFeaturesExtractor):
    """SB3's features extractor: unpads the observations and encodes them."""

    def __init__(self, observation_space: spaces.Space, encoder: nn.Module, width: int) -> None:
        super().__init__(observation_space, features_dim=width)
        self.encoder = encoder

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Return the embeddings, (B, hidden)."""
        return self.encoder(unpad(observations))


class GraphActorCriticPolicy(ActorCriticPolicy):
    """SB3's actor-critic policy around a :class:`gns.policy.network.GNSNetwork`, whose modules it uses as they are.

    For a network with an actor of layers, see :mod:`agents.training.layer_actions`.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Callable[[float], float],
        network_config: NetworkConfig,
        log_std_init: float = 0.0,
        learn_std: bool = True,
        **kwargs: Any,
    ) -> None:
        if network_config.members > 1:
            raise InvalidSettingError(
                f"The network has members = {network_config.members}; PPO trains one. Set agent.network.members to 1, or "
                "fit the members to cost curves, see agents.training.fitting."
            )
        self.network_config, self._learn_std = network_config, learn_std
        network = GNSNetwork(network_config)
        extractor: type[BaseFeaturesExtractor] = GraphFeatures
        parts: dict[str, Any] = {"encoder": network.encoder, "width": network_config.hidden}
        if network.layer_actor is not None:
            extractor, parts["actor"] = LayerFeatures, network.layer_actor
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[],
            ortho_init=False,
            log_std_init=log_std_init,
            features_extractor_class=extractor,
            features_extractor_kwargs=parts,
            **kwargs,
        )
        self.action_net: nn.Module = network.actor
        self.value_net: nn.Module = network.critic  # type: ignore[assignment]
        if network_config.per_layer:
            self.log_std = nn.Parameter(torch.full((2,), log_std_init))
        self.log_std.requires_grad_(learn_std)
        trainable = [p for p in self.parameters() if p.requires_grad]
        self.optimizer = self.optimizer_class(trainable, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def network_state(self) -> dict[str, Tensor]:
        """Return the weights as a ``state_dict`` of :class:`gns.policy.network.GNSNetwork`."""
        return {
            f"{part}.{name}": value.detach().clone()
            for part, module in self._network_parts().items()
            for name, value in module.state_dict().items()
        }

    def load_network(self, network: GNSNetwork) -> None:
        """Take the weights of a network of the same shape."""
        for part, module in self._network_parts().items():
            module.load_state_dict(network.get_submodule(part).state_dict())

    def _network_parts(self) -> dict[str, nn.Module]:
        """Return the modules by their names in :class:`gns.policy.network.GNSNetwork`."""
        assert isinstance(self.features_extractor, GraphFeatures | LayerFeatures)
        parts = {"encoder": self.features_extractor.encoder, "actor": self.action_net, "critic": self.value_net}
        if isinstance(self.features_extractor, LayerFeatures):
            parts["layer_actor"] = self.features_extractor.layer_actor
        return parts

    def _build_mlp_extractor(self) -> None:
        if self.network_config.per_layer:
            self.mlp_extractor: Any = LayerHeads(self.network_config.hidden)
        else:
            super()._build_mlp_extractor()

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        if not self.network_config.per_layer:
            return super()._get_action_dist_from_latent(latent_pi)
        return layer_distribution(self.action_net, self.log_std, latent_pi, self.network_config.hidden)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        for key in ("net_arch", "ortho_init", "features_extractor_class", "features_extractor_kwargs"):
            data.pop(key)
        return {**data, "network_config": self.network_config, "learn_std": self._learn_std}


class TaskReturnScaling(VecEnvWrapper):
    """Divides the rewards of each task and optimizer by the running deviation of their episodes' returns.

    Tasks differ in how far their loss can fall, and returns of one scale let one critic and one clip range serve all.
    Welford's algorithm; until a pair has two episodes its rewards stay as they are. Raw returns stay in
    ``info["episode_return"]``, which an episode lost with its worker (``info["dropped"]``) has not.
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.moments: dict[str, list[float]] = {}  # count, mean, sum of squared deviations
        self._returns = np.zeros(self.num_envs)

    def reset(self) -> Any:
        """Reset every environment."""
        self._returns[:] = 0.0
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Wait, and scale the rewards."""
        observations, rewards, dones, infos = self.venv.step_wait()
        keys = [f"{info['task']}/{info['optimizer']}" for info in infos]
        self._returns += rewards
        for i in np.flatnonzero(dones):
            if infos[i].get("dropped"):  # lost with its worker before its end: no return is known
                self._returns[i] = 0.0
                continue
            infos[i]["episode_return"] = float(self._returns[i])
            self._note(keys[i], float(self._returns[i]))
            self._returns[i] = 0.0
        return observations, rewards / np.array([self.deviation(key) for key in keys]), dones, infos

    def state_dict(self) -> dict[str, Any]:
        """Return moments, returns under way and the state of the environments: plain values."""
        moments = {key: list(values) for key, values in self.moments.items()}
        return {"moments": moments, "returns": self._returns.tolist(), "environments": state_of(self.venv)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, the environments as well.

        :raises StateError: if it is of other environments, or damaged
        """
        with loading():
            load_state_of(self.venv, state["environments"])
            self.moments = {key: list(values) for key, values in state["moments"].items()}
            self._returns = np.array(state["returns"], dtype=np.float64)

    def deviation(self, key: str) -> float:
        """Standard deviation of the returns so far, at least 0.05 (a loss that differs by 5 %); 1 while unknown."""
        count, _, squares = self.moments.get(key, (0.0, 0.0, 0.0))
        return max((squares / (count - 1)) ** 0.5, 0.05) if count >= 2 else 1.0

    def _note(self, key: str, value: float) -> None:
        moments = self.moments.setdefault(key, [0.0, 0.0, 0.0])
        moments[0] += 1
        delta = value - moments[1]
        moments[1] += delta / moments[0]
        moments[2] += delta * (value - moments[1])


def make_vec_env(
    tasks: list[Task],
    config: EnvConfig,
    num_envs: int,
    workers: int,
    seed: int,
    together: bool = True,
    engine: EngineConfig = PROCESSES,
) -> TaskReturnScaling:
    """Return ``num_envs`` padded environments over all ``tasks``, in ``workers`` workers (0: in this process).

    :param together: whether runs of one task and optimizer may be trained together, where that is faster
    :param engine: what the workers are
    """
    venv = make_vector(tasks, config, num_envs, workers, together, engine)
    venv.seed(seed)
    return TaskReturnScaling(venv)


def make_ppo(venv: VecEnv, config: PPOConfig, decisions: int, seed: int) -> PPO:
    """Return SB3's PPO on the environments.

    :param decisions: decisions an episode takes as a rule
    :raises InvalidSettingError: if the environments take actions of layers and the network has none, or the reverse
    """
    layers = int(np.prod(venv.action_space.shape or (1,))) - 1
    if bool(layers) != config.network.per_layer:
        raise InvalidSettingError(
            f"The environments take {1 + layers} numbers as an action and the network has per_layer = "
            f"{config.network.per_layer}; expected per_layer = true for action mode {modes_by_layer()}, and false for "
            "others. Set env.decision.mode, and make the network with "
            "gns.policy.network.network_for(network, decision)."
        )
    steps = max(1, config.episodes_per_rollout * decisions // config.num_envs)

    def learning_rate(remaining: float) -> float:
        return config.learning_rate * (config.final_learning_rate + (1.0 - config.final_learning_rate) * remaining)

    return PPO(
        GraphActorCriticPolicy,
        venv,
        learning_rate=learning_rate,
        n_steps=steps,
        batch_size=config.batch_size,
        n_epochs=config.n_epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip_range,
        ent_coef=config.ent_coef,
        vf_coef=config.vf_coef,
        max_grad_norm=config.max_grad_norm,
        target_kl=config.target_kl,
        policy_kwargs={
            "network_config": config.network,
            "log_std_init": config.log_std,
            "learn_std": config.learn_std,
        },
        seed=seed,
        device="cpu",
    )


def begin_with(model: PPO, source: str, decision: DecisionConfig) -> None:
    """Give a PPO agent the weights of a policy. The deviation of its actions stays as it is.

    How far an action reaches, the bounds of the rate and the number of decisions may differ from the policy's own.

    :param source: folder or Hub id of the policy
    :param decision: how the agent's actions become rates
    :raises InvalidSettingError: if the policy has another network or action mode than the agent
    :raises PolicyFormatError: if it cannot be loaded
    """
    assert isinstance(model.policy, GraphActorCriticPolicy)
    policy = GNSPolicy.from_pretrained(source)
    own = vars(model.policy.network_config) | {"mode": decision.mode}
    given = vars(policy.config.network) | {"mode": policy.config.decision.mode}
    if other := [name for name in own if own[name] != given[name]]:
        raise InvalidSettingError(
            f"initial_policy {source!r} has {', '.join(f'{name} = {given[name]!r}' for name in other)}; expected "
            f"{', '.join(f'{name} = {own[name]!r}' for name in other)}, as this training. Set agent.network and "
            "env.decision.mode as the policy has them, or begin with random weights: initial_policy=null."
        )
    model.policy.load_network(policy.network)


def export_policy(
    model: PPO,
    env: EnvConfig,
    config: PPOConfig,
    training: dict[str, Any],
    trained_on: TrainedOn | None = None,
) -> GNSPolicy:
    """Return the network of a PPO agent as a policy that needs no RL package.

    :param training: what it was trained on, for its model card
    :param trained_on: the kinds of runs among it; None: not recorded
    """
    assert isinstance(model.policy, GraphActorCriticPolicy)
    policy = GNSPolicy(
        PolicyConfig(
            network=config.network, decision=env.decision, training=training, trained_on=trained_on or TrainedOn()
        )
    )
    policy.network.load_state_dict(model.policy.network_state())
    return policy.eval()


def single_thread() -> None:
    """Use one thread and flush denormals in this process: fast for small networks, and repeatable bit for bit."""
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
