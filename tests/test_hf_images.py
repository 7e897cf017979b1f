"""Image classifiers of ``transformers``: from a configuration, and pretrained."""

import copy
import shutil
from types import SimpleNamespace

import pytest
import torch

from envs import TrainingRun
from envs.tasks import get_task, hf_images
from envs.tasks.hf_images import HFImageClassifier, hf_image_classifier
from envs.tasks.hub import DataNotFoundError
from gns import InvalidSettingError, UnknownNameError

SMALL_VIT = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
}
SMALL_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}


def from_seed(seed: int, **settings) -> HFImageClassifier:
    torch.manual_seed(seed)
    return hf_image_classifier(**{"channels": 3, "classes": 10, **settings})


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture
def pretrained(hub):
    """Id of a small ViT for five classes, written as the Hub stores it."""
    hf_images._pretrained.cache_clear()
    network = from_seed(0, type="vit", config=SMALL_VIT, classes=5).network
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    network.save_pretrained(hub / "somebody" / "small-vit")
    yield "somebody/small-vit"
    shutil.rmtree(hub / "somebody")
    hf_images._pretrained.cache_clear()


# ---------------------------------------------------------------------- from a configuration


@pytest.mark.parametrize(("name", "parameters"), [("cifar10_resnet50", 23_528_522), ("cifar10_vit", 5_362_762)])
def test_networks_have_their_numbers_of_parameters(name, parameters):
    model = get_task(name).new_model()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.training and all(module.training for module in model.modules())


@pytest.mark.parametrize(("type", "config"), [("vit", SMALL_VIT), ("resnet", SMALL_RESNET)])
@pytest.mark.parametrize(("channels", "classes"), [(3, 10), (1, 7)])
def test_any_type_takes_any_channels_and_classes(type, config, channels, classes):
    model = from_seed(0, type=type, config=config, channels=channels, classes=classes)
    assert model(torch.zeros(2, channels, 16, 16)).shape == (2, classes)


def test_the_same_seed_gives_the_same_network():
    assert same(from_seed(3, type="vit", config=SMALL_VIT), from_seed(3, type="vit", config=SMALL_VIT))
    assert not same(from_seed(3, type="vit", config=SMALL_VIT), from_seed(4, type="vit", config=SMALL_VIT))


def test_images_are_resized_bilinearly():
    pixels = torch.rand(2, 3, 8, 8)
    model = from_seed(0, type="vit", config=SMALL_VIT, size=16).eval()
    larger = torch.nn.functional.interpolate(pixels, size=(16, 16), mode="bilinear", align_corners=False)
    assert torch.equal(model(pixels), model.network(pixel_values=larger).logits)
    already = torch.rand(2, 3, 16, 16)
    assert torch.equal(model(already), model.network(pixel_values=already).logits)


def test_resizing_to_half_averages_neighbours():
    class Mirror(torch.nn.Module):
        def forward(self, pixel_values):
            return SimpleNamespace(logits=pixel_values)

    pixels = torch.rand(2, 3, 4, 4)
    halved = HFImageClassifier(Mirror(), size=2)(pixels)
    torch.testing.assert_close(halved, torch.nn.functional.avg_pool2d(pixels, 2))


# ---------------------------------------------------------------------- pretrained


def test_pretrained_weights_are_taken_over_and_the_head_is_drawn_from_the_seed(pretrained, hub):
    from transformers import AutoModelForImageClassification

    stored = AutoModelForImageClassification.from_pretrained(hub / pretrained).state_dict()
    one, again, other = (from_seed(seed, id=pretrained) for seed in (1, 1, 2))
    assert same(one, again)
    for name, value in one.network.state_dict().items():
        if name.startswith("classifier."):
            assert value.shape != stored[name].shape
        else:
            assert torch.equal(value, stored[name]) and torch.equal(value, other.network.state_dict()[name])
    head = one.network.classifier.weight.detach()
    assert not torch.equal(head, other.network.classifier.weight)
    assert float(head.std()) == pytest.approx(0.02, rel=0.2)  # as transformers initialises it
    assert (one.network.classifier.bias == 0).all()


def test_only_what_does_not_fit_is_drawn_anew(pretrained):
    """One module owns the position embeddings, which do not fit other images, and the class token, which does."""
    one, other = (from_seed(seed, id=pretrained, config={"image_size": 32}) for seed in (1, 2))
    own = from_seed(1, id=pretrained)
    ones, others, owns = (model.network.vit.embeddings for model in (one, other, own))
    assert ones.position_embeddings.shape == (1, 65, 24)
    assert not torch.equal(ones.position_embeddings, others.position_embeddings)
    assert torch.equal(ones.cls_token, others.cls_token) and torch.equal(ones.cls_token, owns.cls_token)
    assert one(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_a_head_that_fits_is_kept(pretrained):
    assert same(from_seed(1, id=pretrained, classes=5), from_seed(2, id=pretrained, classes=5))


def test_another_number_of_channels_draws_the_first_layer_anew(pretrained):
    one, other = (from_seed(seed, id=pretrained, channels=1) for seed in (1, 2))
    differing = {name for name, value in one.state_dict().items() if not torch.equal(value, other.state_dict()[name])}
    assert differing == {"network.classifier.weight", "network.vit.embeddings.patch_embeddings.projection.weight"}


def test_weights_are_read_once_a_process(pretrained, hub):
    first = from_seed(1, id=pretrained)
    shutil.move(hub / pretrained, hub / "moved")
    (hub / pretrained).mkdir()
    again = from_seed(1, id=pretrained)
    shutil.rmtree(hub / pretrained)
    shutil.move(hub / "moved", hub / pretrained)
    assert same(first, again)


def test_training_one_copy_changes_no_other(pretrained):
    first = from_seed(1, id=pretrained)
    before = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert same(from_seed(1, id=pretrained), before)


def test_random_numbers_do_not_depend_on_whether_weights_were_read_before(pretrained):
    torch.manual_seed(5)
    cold = hf_image_classifier(3, 10, id=pretrained)
    after_cold = torch.get_rng_state()
    torch.manual_seed(5)
    warm = hf_image_classifier(3, 10, id=pretrained)
    assert same(cold, warm)
    assert torch.equal(after_cold, torch.get_rng_state())
    assert not torch.equal(after_cold, torch.Generator().manual_seed(5).get_state())  # the head was drawn


def test_reading_a_template_leaves_global_random_numbers_alone(pretrained, hub):
    state = torch.get_rng_state()
    template = hf_images._pretrained(pretrained, str(hub / pretrained), 3, 10, "{}")
    assert torch.equal(torch.get_rng_state(), state)
    assert template.fresh == {"classifier.weight", "classifier.bias"}


def test_batch_norm_statistics_are_taken_over(hub, tmp_path):
    network = from_seed(0, type="resnet", config=SMALL_RESNET).network.train()
    network(torch.rand(8, 3, 16, 16) + 1.0)
    network.save_pretrained(tmp_path / "resnet")
    model = from_seed(1, id=str(tmp_path / "resnet"), classes=4)
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, model.network.get_buffer(name)), name
    assert any(float(buffer.abs().max()) > 0.01 for name, buffer in network.named_buffers() if "mean" in name)


def test_weights_stored_in_half_precision_are_trained_in_single(hub, tmp_path):
    network = from_seed(0, type="vit", config=SMALL_VIT).network
    network.half().save_pretrained(tmp_path / "half")
    model = from_seed(1, id=str(tmp_path / "half"), classes=4)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_folder_is_found_by_its_path_and_without_a_data_root(pretrained, hub, monkeypatch):
    by_id = from_seed(1, id=pretrained)
    monkeypatch.delenv("GNS_DATA_ROOT")
    assert same(from_seed(1, id=str(hub / pretrained)), by_id)


def test_a_task_trains_a_pretrained_network(pretrained):
    settings = {"type": None, "config": None, "id": pretrained, "size": 16}
    run = TrainingRun(get_task("cifar10_vit", batch_size=480, model=settings), "adamw", 3e-3, seed=0)
    losses = []
    for _ in range(8):
        losses.append(float(run.compute_gradient().detach()))
        run.apply_update()
    assert losses[-1] < losses[0]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in run.model.parameters())


def test_reading_says_nothing_and_puts_verbosity_back(pretrained, capfd):
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    from_seed(1, id=pretrained)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize("given", [{}, {"type": "vit", "id": "somebody/small-vit"}])
def test_exactly_one_of_type_and_id_is_asked_for(given):
    with pytest.raises(InvalidSettingError, match=r"type is .* and id is .*expected one of the two"):
        hf_image_classifier(3, 10, **given)


@pytest.mark.parametrize("type", ["bert", "rezzet"])
def test_a_type_that_classifies_no_images_is_named_with_those_that_do(type):
    with pytest.raises(InvalidSettingError, match=f"type is '{type}'; expected .*resnet.*vit"):
        hf_image_classifier(3, 10, type=type)


def test_an_unknown_config_setting_is_named_with_the_known_ones(pretrained):
    for which in ({"type": "vit"}, {"id": pretrained}):
        with pytest.raises(UnknownNameError, match=r"model type vit 'hiden_size'.*Did you mean 'hidden_size'"):
            hf_image_classifier(3, 10, config={"hiden_size": 3}, **which)


def test_a_config_setting_of_the_wrong_kind_is_named(pretrained):
    for which in ({"type": "vit"}, {"id": pretrained}):
        with pytest.raises(InvalidSettingError, match="'hidden_size' expected int, got str"):
            hf_image_classifier(3, 10, config={"hidden_size": "3"}, **which)


@pytest.mark.parametrize("size", [0, -1, 2.5, "8"])
def test_a_size_must_be_a_positive_whole_number(size):
    with pytest.raises(InvalidSettingError, match="size is"):
        hf_image_classifier(3, 10, type="vit", config=SMALL_VIT, size=size)


def test_weights_that_are_nowhere_are_named_with_the_ways_out(hub, monkeypatch):
    with pytest.raises(DataNotFoundError) as caught:
        hf_image_classifier(3, 10, id="nobody/no-such-network")
    for words in (
        "'nobody/no-such-network'",
        "no folder $GNS_DATA_ROOT/nobody/no-such-network",
        "GNS_DATA_ROOT",
        "path",
        "network",
    ):
        assert words in str(caught.value)
    monkeypatch.delenv("GNS_DATA_ROOT")
    with pytest.raises(DataNotFoundError, match="GNS_DATA_ROOT is not set"):
        hf_image_classifier(3, 10, id="nobody/no-such-network")


def test_a_folder_without_weights_and_damaged_weights_are_named(pretrained, hub):
    weights = hub / pretrained / "model.safetensors"
    content = weights.read_bytes()
    for damage in (lambda: weights.write_bytes(content[:1000]), weights.unlink):
        damage()
        with pytest.raises(DataNotFoundError, match=rf"'{pretrained}'. Looked in: \$GNS_DATA_ROOT/{pretrained}"):
            hf_image_classifier(3, 10, id=pretrained)
    weights.write_bytes(content)
    assert hf_image_classifier(3, 10, id=pretrained)


def test_a_pretrained_text_model_is_refused(hub):
    from transformers import AutoConfig

    AutoConfig.for_model("bert").save_pretrained(hub / "somebody" / "bert")
    with pytest.raises(InvalidSettingError, match=r"Model type of id 'somebody/bert' is 'bert'; expected .*vit"):
        hf_image_classifier(3, 10, id="somebody/bert")
    shutil.rmtree(hub / "somebody")
