import shutil

import numpy as np
import pytest
import torch

from envs.tasks import get_task, image_models, images
from envs.tasks.hub import DataNotFoundError, decode_images, load_hub_dataset
from envs.tasks.report import load_test_split

MODELS = [
    (image_models.lenet, {"channels": 1, "size": 28}, 61_706),
    (image_models.net_2c2d, {"channels": 1, "size": 28}, 3_274_634),
    (image_models.net_3c3d, {"channels": 3, "size": 32}, 895_210),
    (image_models.resnet, {"channels": 3, "depth": 20}, 269_722),
    (image_models.resnet, {"channels": 3, "depth": 38}, 561_370),
    (image_models.wide_resnet, {"channels": 3}, 10_961_370),
    (image_models.vgg16, {"channels": 3}, 14_728_266),
]


@pytest.mark.parametrize(("build", "settings", "parameters"), MODELS)
def test_networks_have_their_published_numbers_of_parameters(build, settings, parameters):
    model = build(classes=10, **settings)
    assert sum(p.numel() for p in model.parameters()) == parameters
    size = settings.get("size", 32)
    assert model(torch.zeros(2, settings["channels"], size, size)).shape == (2, 10)


def test_residual_blocks_add_what_they_are_given():
    block = image_models._Residual(4, 8, stride=2).eval()
    with torch.no_grad():
        block.norm2.weight.zero_()
        block.norm2.bias.zero_()
        x = torch.rand(2, 4, 6, 6)
        out = block(x)
    assert torch.equal(out[:, :4], x[:, :, ::2, ::2]) and (out[:, 4:] == 0).all()


def test_images_are_decoded_as_they_were_encoded(hub):
    data = load_hub_dataset("uoft-cs/cifar10")["test"]
    pixels = decode_images(data.select_columns(["img"]))
    assert pixels.shape == (120, 3, 32, 32) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(np.moveaxis(pixels[7], 0, -1), np.asarray(data[7]["img"]))


def test_splits_are_carved_from_the_training_split_by_a_fixed_seed(hub):
    task = get_task("fashion_mnist_2c2d")
    data, test = task.load_training_data(), load_test_split("fashion_mnist_2c2d")
    assert (len(data.train), len(data.reward), len(test)) == (480, 120, 120)
    whole = decode_images(load_hub_dataset(images.FASHION_MNIST.hub_id)["train"].select_columns(["image"]))
    carved = torch.cat([data.train.inputs, data.reward.inputs])
    assert sorted(map(bytes, carved.numpy().reshape(600, -1))) == sorted(map(bytes, whole.reshape(600, -1)))
    assert data.train.inputs.dtype == torch.uint8  # resident at a byte a pixel


def test_tasks_on_one_data_set_share_it_in_memory(hub):
    one, other = (get_task(f"fashion_mnist_{model}").load_training_data() for model in ("2c2d", "lenet"))
    assert one.train.inputs is other.train.inputs


def test_preparation_normalises_and_leaves_evaluation_alone():
    pixels = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    x = images.prepare_images(images.CIFAR10, pixels, training=False)
    for channel, (mean, deviation) in enumerate(zip(images.CIFAR10.mean, images.CIFAR10.deviation, strict=True)):
        expected = (pixels[:, channel].float() / 255 - mean) / deviation
        torch.testing.assert_close(x[:, channel], expected)
    assert torch.equal(x, images.prepare_images(images.CIFAR10, pixels, training=False))
    assert not torch.equal(x, images.prepare_images(images.CIFAR10, pixels, training=True))
    gray = pixels[:, :1, :28, :28]  # no augmentation without padding
    plain, training = (images.prepare_images(images.FASHION_MNIST, gray, flag) for flag in (False, True))
    assert torch.equal(plain, training)


def test_crop_and_flip_equals_its_readable_twin():
    x, pad = torch.randn(40, 3, 9, 7), 2
    torch.manual_seed(5)
    fast = images.crop_and_flip(x, pad)
    torch.manual_seed(5)
    top, left = torch.randint(0, 2 * pad + 1, (2, 40, 1))
    mirrored = torch.rand(40, 1) < 0.5
    for i in range(40):
        padded = torch.zeros(3, 9 + 2 * pad, 7 + 2 * pad)
        padded[:, pad:-pad, pad:-pad] = x[i]
        crop = padded[:, top[i, 0] : top[i, 0] + 9, left[i, 0] : left[i, 0] + 7]
        assert torch.equal(fast[i], crop.flip(-1) if mirrored[i, 0] else crop)
    assert 5 < int(mirrored.sum()) < 35 and len(top.unique()) == 5


def test_data_that_are_nowhere_are_named_with_the_two_ways_out(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("GNS_DATA_ROOT", str(tmp_path))
    with pytest.raises(DataNotFoundError) as caught:
        load_hub_dataset("nobody/no-such-data")
    for words in ("'nobody/no-such-data'", str(tmp_path), "GNS_DATA_ROOT", "network"):
        assert words in str(caught.value)
    monkeypatch.delenv("GNS_DATA_ROOT")
    with pytest.raises(DataNotFoundError, match="GNS_DATA_ROOT is not set"):
        load_hub_dataset("nobody/no-such-data")


def test_a_damaged_folder_is_named(hub, tmp_path, monkeypatch):
    shutil.copytree(hub / "ylecun", tmp_path / "ylecun")
    file = tmp_path / "ylecun" / "mnist" / "data" / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:1000])
    monkeypatch.setenv("GNS_DATA_ROOT", str(tmp_path))
    with pytest.raises(DataNotFoundError, match="ylecun/mnist"):
        load_hub_dataset("ylecun/mnist")
