"""A scheduling policy as a file anyone may load: safetensors for the weights, JSON for everything else.

No pickle is read or written. The JSON names the format version, the feature schema, the action mode and the bounds of
the rate; a policy of another schema or version is refused with a :class:`~gns.errors.PolicyFormatError`.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from torch import nn

from gns.decision import DecisionConfig, Observation
from gns.errors import GNSError, PolicyFormatError
from gns.features import get_schema
from gns.network import NO_GRAPH, GNSNetwork, NetworkConfig, batch_observations

FORMAT_VERSION = 1
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
MAX_FILE_BYTES = 256 * 2**20  # no policy comes near; keeps a hostile file from filling the memory


@dataclass(frozen=True)
class PolicyConfig:
    """What a policy is, apart from its weights: the content of ``config.json``.

    :param network: shape of the network
    :param decision: how its actions become rates
    :param feature_names: node and global features it was trained on, checked against the schema when it is loaded
    :param format_version: version of this format
    :param training: what it was trained on, for the model card: plain JSON values
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    decision: DecisionConfig = field(default_factory=DecisionConfig)
    feature_names: dict[str, list[str]] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.network.features != self.decision.features:
            raise PolicyFormatError(
                f"The network reads features {self.network.features!r} but decisions give {self.decision.features!r}; "
                "expected one schema in both."
            )
        schema = get_schema(self.decision.features)
        names = {"node": list(schema.node), "global": list(schema.globals)}
        if not self.feature_names:
            object.__setattr__(self, "feature_names", names)
        elif self.feature_names != names:
            raise PolicyFormatError(
                f"The policy was trained on other features than schema {schema.name!r} has here: {self.feature_names} "
                f"against {names}. Use the version of gns that trained it, or train it anew."
            )

    @classmethod
    def from_dict(cls, data: Any) -> PolicyConfig:
        """Build from parsed JSON.

        :raises PolicyFormatError: on anything but a policy of this version with known keys and valid values
        """
        if not isinstance(data, dict) or "format_version" not in data:
            raise PolicyFormatError("This is no GNS policy: expected a JSON object with a format_version.")
        if data["format_version"] != FORMAT_VERSION:
            raise PolicyFormatError(
                f"The policy has format version {data['format_version']!r}; this gns reads {FORMAT_VERSION}. "
                "Use the version of gns that wrote it, or train it anew."
            )
        if not isinstance(data.get("training", {}), dict):
            raise PolicyFormatError(f"{_NOT_VALID}training is {data['training']!r}; expected an object.")
        try:
            parts = {
                "network": _build(NetworkConfig, data["network"]),
                "decision": _build(DecisionConfig, data["decision"]),
            }
            return cls(**{**data, **parts})
        except PolicyFormatError:
            raise
        except (GNSError, KeyError, TypeError, AttributeError) as error:
            raise PolicyFormatError(f"{_NOT_VALID}{error}") from error


def _build(cls: type, data: Any) -> Any:
    """Build a flat dataclass of numbers, strings and flags, each of its declared kind."""
    known = {f.name: f for f in fields(cls)}
    if not isinstance(data, dict) or (unknown := set(data) - set(known)):
        given = sorted(unknown) if isinstance(data, dict) else data
        raise PolicyFormatError(f"{_NOT_VALID}{cls.__name__} has no settings {given!r}; expected {sorted(known)}.")
    for name, value in data.items():
        kinds = _KINDS[str(known[name].type)]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise PolicyFormatError(f"{_NOT_VALID}{name} is {value!r}; expected {known[name].type}.")
    return cls(**data)


_NOT_VALID = f"The policy's {CONFIG_FILE} is not valid: "
_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "int | None": (int, type(None)),
}


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
        self.network = GNSNetwork(self.config.network)

    @torch.no_grad()
    def act(self, observation: Observation) -> float:
        """Return the deterministic action for one observation: a float in [-1, 1].

        Dropout is off whatever mode the module is in.
        """
        training = self.training
        self.eval()
        mean, _ = self.network(batch_observations([observation]))
        self.train(training)
        return float(mean[0, 0])

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
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> GNSPolicy:
        """Load a policy in evaluation mode.

        :param pretrained_model_name_or_path: folder with ``config.json`` and ``model.safetensors``, or a Hub id
        :param kwargs: ``revision``, ``cache_dir``, ``force_download``, ``local_files_only``, ``token`` for a Hub id
        :raises PolicyFormatError: if a file is missing or damaged, or of another schema or version
        """
        source = str(pretrained_model_name_or_path)
        config_file, weights_file = (_locate(source, name, kwargs) for name in (CONFIG_FILE, WEIGHTS_FILE))
        try:
            data = json.loads(_read(config_file).decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise PolicyFormatError(f"{config_file} is not valid JSON ({error}); expected a GNS policy's.") from error
        policy = cls(PolicyConfig.from_dict(data))
        policy._load_weights(weights_file)
        return policy.eval()

    def _load_weights(self, path: Path) -> None:
        from safetensors.torch import load

        try:
            weights = load(_read(path))
            self.load_state_dict(weights, strict=True)
        except Exception as error:  # safetensors and torch raise several kinds for a damaged file
            raise PolicyFormatError(
                f"{path} holds no weights for this policy ({type(error).__name__}: {error}). Expected an undamaged "
                "safetensors file that belongs to the config beside it; copy or download the policy again."
            ) from error
        bad = [name for name, value in self.state_dict().items() if not torch.isfinite(value).all()]
        if bad:
            raise PolicyFormatError(f"{path} holds weights that are not finite: {bad[:3]}; expected finite ones.")

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``config.json``."""
        return asdict(self.config)


def _read(path: Path) -> bytes:
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise PolicyFormatError(f"{path} has {size:,} bytes; expected at most {MAX_FILE_BYTES:,} for a policy.")
    return path.read_bytes()


def _locate(source: str, name: str, kwargs: dict[str, Any]) -> Path:
    """Return the local path of a policy's file, from a folder or the Hub."""
    folder = Path(source)
    if os.path.isdir(source):
        if not (folder / name).is_file():
            raise PolicyFormatError(
                f"{folder} has no {name}. Expected a folder written by save_pretrained with {CONFIG_FILE} and "
                f"{WEIGHTS_FILE}; pickled checkpoints are not read."
            )
        return folder / name
    try:
        return Path(hf_hub_download(repo_id=source, filename=name, **kwargs))
    except RemoteEntryNotFoundError as error:
        raise PolicyFormatError(f"The Hub repository {source!r} has no {name}; expected a GNS policy.") from error
    except Exception as error:
        raise PolicyFormatError(
            f"No policy at {source!r}: it is no folder here, and the Hub did not give it ({type(error).__name__}: "
            f"{error}). Check the path or the id, or the network."
        ) from error
