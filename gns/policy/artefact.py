"""A scheduling policy as a file anyone may load: safetensors for the weights, JSON for everything else.

No pickle is read or written. The JSON names the format version, the feature schema, the action mode and the bounds of
the rate; a policy of another schema or version is refused with a :class:`~gns.errors.PolicyFormatError`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin
from torch import Tensor, nn

from gns.deciding.decision import DecisionConfig, Observation
from gns.errors import GNSError, PolicyFormatError
from gns.features.schemas import get_schema
from gns.policy.files import MAX_CONFIG_BYTES, MAX_FILE_BYTES, check_weights, parse_json, read_bounded, shown
from gns.policy.finding import CONFIG_FILE, WEIGHTS_FILE, find_policy
from gns.policy.network import NO_GRAPH, GNSNetwork, NetworkConfig, batch_observations, network_for
from gns.policy.trained_on import TrainedOn

FORMAT_VERSION = 1
_LARGEST_WEIGHT = 1e6  # larger ones could overflow float32 on the way to an action


@dataclass(frozen=True)
class PolicyConfig:
    """What a policy is, apart from its weights: the content of ``config.json``.

    :param network: shape of the network; action mode ``per-layer`` gives it an actor of layers
    :param decision: how its actions become rates
    :param feature_names: node and global features it was trained on, checked against the schema when it is loaded
    :param format_version: version of this format
    :param training: what it was trained on, for the model card: plain JSON values
    :param trained_on: what kinds of runs it was trained on; not in the files of earlier versions
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    decision: DecisionConfig = field(default_factory=DecisionConfig)
    feature_names: dict[str, list[str]] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    training: dict[str, Any] = field(default_factory=dict)
    trained_on: TrainedOn = field(default_factory=TrainedOn)

    def __post_init__(self) -> None:
        if self.network.features != self.decision.features:
            raise PolicyFormatError(
                f"The network reads features {self.network.features!r} but decisions give {self.decision.features!r}; "
                "expected one schema in both."
            )
        object.__setattr__(self, "network", network_for(self.network, self.decision))
        schema = get_schema(self.decision.features)
        names = {"node": list(schema.node), "global": list(schema.globals)}
        if not self.feature_names:
            object.__setattr__(self, "feature_names", names)
        elif self.feature_names != names:
            raise PolicyFormatError(
                f"The policy was trained on other features than schema {schema.name!r} has here: "
                f"{shown(self.feature_names, 2000)} against {names}. Use the version of gns that trained it, or train "
                "it anew."
            )

    @classmethod
    def from_dict(cls, data: Any) -> PolicyConfig:
        """Build from parsed JSON.

        :raises PolicyFormatError: on anything but a policy of this version with known keys and valid values
        """
        if not isinstance(data, dict) or "format_version" not in data:
            raise PolicyFormatError("This is no GNS policy: expected a JSON object with a format_version.")
        version = data["format_version"]
        if type(version) is not int or version != FORMAT_VERSION:
            raise PolicyFormatError(
                f"The policy has format version {shown(version)}; this gns reads {FORMAT_VERSION}. "
                "Use the version of gns that wrote it, or train it anew."
            )
        if not isinstance(data.get("training", {}), dict):
            raise PolicyFormatError(f"{_NOT_VALID}training is {shown(data['training'])}; expected an object.")
        if unknown := set(data) - {item.name for item in fields(cls)}:
            raise PolicyFormatError(f"{_NOT_VALID}it has no keys {shown(sorted(unknown))}.")
        try:
            parts = {
                "network": _build(NetworkConfig, data["network"]),
                "decision": _build(DecisionConfig, data["decision"]),
                "trained_on": TrainedOn.from_dict(data.get("trained_on", {})),
            }
            return cls(**{**data, **parts})
        except PolicyFormatError:
            raise
        except (GNSError, KeyError, TypeError, AttributeError) as error:
            raise PolicyFormatError(f"{_NOT_VALID}{error}") from error


def _build(cls: type, data: Any) -> Any:
    """Build a flat dataclass of numbers, strings and flags, each of its declared kind and of a size that works."""
    known = {f.name: f for f in fields(cls)}
    if not isinstance(data, dict) or (unknown := set(data) - set(known)):
        given = sorted(unknown) if isinstance(data, dict) else data
        raise PolicyFormatError(f"{_NOT_VALID}{cls.__name__} has no settings {shown(given)}; expected {sorted(known)}.")
    for name, value in data.items():
        kinds = _KINDS[str(known[name].type)]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise PolicyFormatError(f"{_NOT_VALID}{name} is {shown(value)}; expected {known[name].type}.")
        if isinstance(value, str) and len(value) > _LONGEST_NAME:
            raise PolicyFormatError(f"{_NOT_VALID}{name} is {shown(value)}; expected a name.")
        if isinstance(value, int | float) and abs(value) > (largest := _LARGEST.get(name, _LARGEST_NUMBER)):
            raise PolicyFormatError(f"{_NOT_VALID}{name} is {shown(value)}; expected at most {largest:g}.")
    return cls(**data)


_NOT_VALID = f"The policy's {CONFIG_FILE} is not valid: "
_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "int | None": (int, type(None)),
    "float | None": (int, float, type(None)),
}
_LONGEST_NAME = 100
_LARGEST_NUMBER = 1e9
_LARGEST = {"strength": 100.0}  # math.exp of it is taken


class GNSPolicy(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="gns-scheduler",
    license="apache-2.0",
    tags=["learning-rate", "scheduler", "reinforcement-learning", "graph-neural-network"],
):
    """A frozen or trainable scheduling policy.

    ``from_pretrained`` takes a folder or a Hub id, ``save_pretrained`` writes a folder, ``push_to_hub`` uploads one.

    :param config: what the policy is
    """

    def __init__(self, config: PolicyConfig | None = None) -> None:
        super().__init__()
        self.config = config or PolicyConfig()
        self._hub_mixin_config = self.config
        self.network = GNSNetwork(self.config.network).float()  # whatever torch.set_default_dtype says
        self._type_ids = self.config.trained_on.type_ids()

    @torch.no_grad()
    def act(self, observation: Observation) -> Any:
        """Return the deterministic action for one observation of L layers, as the decision core takes it.

        Dropout is off whatever mode the module is in. A layer of a type that the policy was not trained on is read as
        one of the nearest type that it was, see :meth:`gns.policy.trained_on.TrainedOn.read_as`.

        :return: a float in [-1, 1]; in action mode ``per-layer`` float64 (1 + L,): the shared one, then each layer's
        """
        training = self.network.training
        if training:
            self.network.eval()
        if self._type_ids is not None:
            observation = replace(observation, node_types=self._type_ids.take(observation.node_types, mode="clip"))
        mean, layers = self.network.actions(batch_observations([observation]))
        if training:
            self.network.train()
        return float(mean[0, 0]) if layers is None else torch.cat([mean[0], layers]).double().numpy()

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the card that ``save_pretrained`` writes as README.md."""
        info = type(self)._hub_mixin_info.model_card_data.to_dict()
        decision = self.config.decision
        rows = "\n".join(f"| {key} | {value} |" for key, value in self.config.training.items())
        parameters = sum(p.numel() for p in self.parameters())
        kind = "Network on global features" if self.config.network.convolution == NO_GRAPH else "Graph network"
        text = (
            f"---\n{ModelCardData(**info).to_yaml()}\n---\n\n# A learning-rate scheduling policy (GNS)\n\n"
            f"{kind} of {parameters:,} parameters; action mode `{decision.mode}`, {decision.num_decisions} "
            f"decisions a run, rates within [{decision.min_lr:g}, {decision.max_lr:g}], features "
            f"`{decision.features}`, format version {self.config.format_version}.\n\n"
            f"Load it with `gns.GNSPolicy.from_pretrained(folder_or_hub_id)`.\n\n## Training\n\n"
            f"| setting | value |\n| --- | --- |\n{rows}\n"
        )
        return ModelCard(text)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, revision: str | None = None, **kwargs: Any
    ) -> GNSPolicy:
        """Load a policy in evaluation mode. Nothing is unpickled or run, whatever the files hold.

        **Pin the revision of a policy from the Hub**: without one the files are those its repository has today, and
        whoever can write to it decides about the rates of your training tomorrow. A commit's hash fixes them for good;
        a branch or tag may be moved. Files too large for a policy are refused before they are fetched.

        :param pretrained_model_name_or_path: folder with ``config.json`` (at most 1 MiB) and ``model.safetensors`` (at
            most 256 MiB), or a Hub id, see :func:`gns.policy.finding.find_policy`
        :param revision: commit, tag or branch of a Hub id; of no effect on a folder
        :param kwargs: ``cache_dir``, ``force_download``, ``local_files_only``, ``token`` for a Hub id
        :raises PolicyFormatError: if a file is missing, damaged or too large, or of another schema or version
        """
        files = find_policy(pretrained_model_name_or_path, revision=revision, **kwargs)
        config_file, weights_file = files[CONFIG_FILE], files[WEIGHTS_FILE]
        try:
            data = parse_json(read_bounded(config_file, MAX_CONFIG_BYTES))
        except ValueError as error:
            if isinstance(error, PolicyFormatError):
                raise
            raise PolicyFormatError(f"{config_file} is not valid JSON ({error}); expected a GNS policy's.") from error
        config = PolicyConfig.from_dict(data)
        with torch.device("meta"):  # shapes alone, and no random numbers, until the file is known to be of these
            policy = cls(config)
        policy.load_state_dict(_load_weights(weights_file, policy), assign=True)
        bad = [name for name, value in policy.state_dict().items() if not (value.abs() <= _LARGEST_WEIGHT).all()]
        if bad:
            raise PolicyFormatError(
                f"{weights_file} holds weights that are not finite, or beyond {_LARGEST_WEIGHT:g}: {bad[:3]}; expected "
                "those of a trained policy."
            )
        return policy.eval()

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``config.json``."""
        data = asdict(self.config)
        data["trained_on"] = {key: list(v) if isinstance(v, tuple) else v for key, v in data["trained_on"].items()}
        return data


def _load_weights(path: Path, policy: GNSPolicy) -> dict[str, Tensor]:
    """Return the weights of a policy, once the file's header is known to name just these."""
    from safetensors.torch import load

    content = read_bounded(path, MAX_FILE_BYTES)
    shapes = {name: tuple(value.shape) for name, value in policy.state_dict().items()}
    try:
        check_weights(content, shapes)
        return {name: value.float().clone() for name, value in load(content).items()}
    except Exception as error:  # safetensors raises several kinds for a damaged file
        raise PolicyFormatError(
            f"{path} holds no weights for this policy ({type(error).__name__}: {error}). Expected an undamaged "
            "safetensors file that belongs to the config beside it; copy or download the policy again."
        ) from error
