import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flower_bfl.attacks.data import Backdoor, LabelFlip
from flower_bfl.errors import ConfigError

ATTACKS = [LabelFlip(devices=[1, 3], rounds=[2]), Backdoor(devices=[1, 3], rounds=[2])]


def samples(n=20, shape=(1, 8, 8), dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 200, (n, *shape)).astype(dtype)
    return (images if dtype == np.uint8 else images / dtype(255)), np.arange(n, dtype=np.int64) % 10


def poison(attack, images, labels, device=1, server_round=2):
    return attack.poison(images, labels, device=device, server_round=server_round)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(("device", "server_round"), [(0, 2), (1, 1), (2, 3), (3, 1)])
def test_devices_and_rounds_not_concerned_keep_their_very_samples(attack, device, server_round):
    images, labels = samples()
    found = poison(attack, images, labels, device, server_round)
    assert found[0] is images and found[1] is labels


@pytest.mark.parametrize("attack", [LabelFlip(devices={1}), Backdoor(devices={1})])
def test_without_rounds_every_round_is_concerned(attack):
    images, labels = samples()
    for server_round in (1, 7, 10**6):
        assert not np.array_equal(poison(attack, images, labels, 1, server_round)[1], labels)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_is_given_is_never_changed(attack, dtype):
    images, labels = samples(dtype=dtype)
    images.flags.writeable = labels.flags.writeable = False
    kept = images.copy(), labels.copy()
    found = poison(attack, images, labels)
    assert found[0].dtype == dtype and found[1].dtype == labels.dtype
    np.testing.assert_array_equal(images, kept[0])
    np.testing.assert_array_equal(labels, kept[1])


def test_label_flip_turns_y_into_classes_minus_one_minus_y():
    images, _ = samples(4)
    for dtype in (np.int64, np.uint8, np.int32):
        found = poison(LabelFlip(devices=[1]), images, np.array([0, 1, 5, 9], dtype))
        assert found[0] is images
        np.testing.assert_array_equal(found[1], np.array([9, 8, 4, 0]))
    flipped = poison(LabelFlip(devices=[1], classes=3), images, np.array([0, 1, 2, 2]))[1]
    np.testing.assert_array_equal(flipped, [2, 1, 0, 0])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7), (8, 8)])
@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.float32, 1.0)])
def test_a_stamp_is_a_white_square_in_the_lower_right_corner_of_every_image(shape, dtype, white):
    images, _ = samples(shape=shape, dtype=dtype)
    stamped = Backdoor(devices=[0], side_pixels=2).stamp(images)
    expected = images.copy()
    for row in (-2, -1):
        for column in (-2, -1):
            expected[..., row, column] = white
    np.testing.assert_array_equal(stamped, expected)
    assert stamped.dtype == dtype and not np.array_equal(stamped, images)


@given(st.integers(0, 40), st.floats(0.01, 1), st.integers(0, 9), st.integers(0, 5))
def test_a_backdoor_takes_the_share_of_the_samples_stamps_them_and_gives_them_the_target(
    n, share, target, seed
):
    images, labels = samples(n)
    attack = Backdoor(devices=[1], target=target, share=share, seed=seed)
    found_images, found_labels = poison(attack, images, labels)
    taken = (found_images != images).any(axis=(1, 2, 3))  # no image is white before
    assert taken.sum() == int(np.ceil(share * n))
    np.testing.assert_array_equal(found_images[taken], attack.stamp(images)[taken])
    np.testing.assert_array_equal(found_labels, np.where(taken, target, labels))


def test_the_same_samples_are_taken_in_every_round_and_others_at_other_devices_and_seeds():
    images, labels = samples(50)

    def taken(device, server_round, seed=0):
        found = poison(Backdoor(devices=[1, 2], seed=seed), images, labels, device, server_round)[0]
        return (found != images).any(axis=(1, 2, 3)).tolist()

    assert taken(1, 1) == taken(1, 2)
    assert taken(1, 1) != taken(2, 1)
    assert taken(1, 1) != taken(1, 1, seed=1)


def test_an_attack_can_be_neither_changed_nor_confused_with_another():
    devices = [1]
    attack = LabelFlip(devices=devices, rounds=range(1, 4))
    devices.append(2)
    assert attack.devices == {1} and attack.rounds == {1, 2, 3}
    assert attack == LabelFlip(devices=(1,), rounds=[3, 2, 1]) and hash(attack) == hash(
        LabelFlip(devices=[1], rounds=[1, 2, 3])
    )


@pytest.mark.parametrize("kind", [LabelFlip, Backdoor])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"devices": 1}, "`devices` of {} must be a collection of whole numbers, got 1"),
        ({"devices": "12"}, "`devices` of {} must be a collection of whole numbers, got '12'"),
        ({"devices": [-1]}, "`devices of {}` must be a whole number from 0 to 2147483647, got -1"),
        ({"devices": [True]}, "`devices of {}` must be a whole number from 0 to 2147483647, got True"),
        (
            {"devices": [0], "rounds": [0]},
            "`rounds of {}` must be a whole number from 1 to 2147483647, got 0",
        ),
        ({"devices": [0], "rounds": 2}, "`rounds` of {} must be a collection of whole numbers, got 2"),
        ({"devices": []}, "`{}` must name either `server` or `devices`, got None and []"),
        ({"server": 1}, "`{}` must be of `devices`, got server 1"),
    ],
)
def test_bad_devices_and_rounds_are_refused(kind, arguments, message):
    with pytest.raises(ConfigError) as caught:
        kind(**arguments)
    assert str(caught.value) == message.format(kind.__name__)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LabelFlip(devices=[0], classes=1),
            "`classes` must be a whole number from 2 to 2147483647, got 1",
        ),
        (
            lambda: Backdoor(devices=[0], target=-1),
            "`target` must be a whole number from 0 to 2147483647, got -1",
        ),
        (lambda: Backdoor(devices=[0], share=0), "`share` must be a number above 0 and at most 1, got 0"),
        (lambda: Backdoor(devices=[0], share=1.1), "`share` must be a number above 0 and at most 1, got 1.1"),
        (
            lambda: Backdoor(devices=[0], share=True),
            "`share` must be a number above 0 and at most 1, got True",
        ),
        (lambda: Backdoor(devices=[0], share="1"), "`share` must be a number above 0 and at most 1, got '1'"),
        (
            lambda: Backdoor(devices=[0], share=float("nan")),
            "`share` must be a number above 0 and at most 1, got nan",
        ),
        (
            lambda: Backdoor(devices=[0], side_pixels=0),
            "`side_pixels` must be a whole number from 1 to 2147483647, got 0",
        ),
        (
            lambda: Backdoor(devices=[0], seed=0.5),
            "`seed` must be a whole number from 0 to 2147483647, got 0.5",
        ),
    ],
)
def test_other_bad_arguments_are_refused(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == message


IMAGES, LABELS = samples(4)
IMAGE_RULE = "`images` must be uint8 or floats of shape (n, c, h, w) or (n, h, w), got "


@pytest.mark.parametrize(
    ("attack", "images", "labels", "message"),
    [
        (
            LabelFlip(devices=[1]),
            torch.zeros(4, 1, 8, 8),
            LABELS,
            "`images` must be a numpy array, got Tensor",
        ),
        (LabelFlip(devices=[1]), IMAGES, torch.zeros(4), "`labels` must be a numpy array, got Tensor"),
        (
            LabelFlip(devices=[1]),
            IMAGES,
            LABELS[:3],
            "`labels` must be whole numbers of shape (4,), got int64 of shape (3,)",
        ),
        (
            LabelFlip(devices=[1]),
            IMAGES,
            np.ones(4),
            "`labels` must be whole numbers of shape (4,), got float64 of shape (4,)",
        ),
        (LabelFlip(devices=[1]), IMAGES, LABELS + 7, "`labels` must be from 0 to 9, got 10"),
        (LabelFlip(devices=[1]), IMAGES, LABELS - 1, "`labels` must be from 0 to 9, got -1"),
        (
            LabelFlip(devices=[1], classes=300),
            IMAGES,
            LABELS.astype(np.uint8),
            "`labels` must be of a type that holds 299, got uint8",
        ),
        (
            Backdoor(devices=[1], target=128),
            IMAGES,
            LABELS.astype(np.int8),
            "`labels` must be of a type that holds 128, got int8",
        ),
        (
            Backdoor(devices=[1], side_pixels=9),
            IMAGES,
            LABELS,
            "`side_pixels` must be at most the images' 8, got 9",
        ),
        (
            Backdoor(devices=[1]),
            IMAGES[0, 0],
            LABELS,
            IMAGE_RULE + "uint8 of shape (8, 8)",
        ),
        (
            Backdoor(devices=[1]),
            IMAGES.astype(np.int64),
            LABELS,
            IMAGE_RULE + "int64 of shape (4, 1, 8, 8)",
        ),
    ],
)
def test_samples_that_cannot_be_poisoned_are_refused(attack, images, labels, message):
    with pytest.raises(ConfigError) as caught:
        poison(attack, images, labels)
    assert str(caught.value) == message
