import numpy as np
import pytest
from ddbench_npz import Npz

from ddbench import DataError, UsageError
from ddbench.testing import check_dataset


@pytest.fixture
def sides(tmp_path):
    """A file of 60 images of two classes."""
    generator = np.random.default_rng(0)
    arrays = {"names": np.array(["left", "right"])}
    for part, count in (("train", 40), ("test", 20)):
        arrays[f"x_{part}"] = generator.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % 2
    np.savez(tmp_path / "sides.npz", **arrays)
    return tmp_path / "sides.npz"


def test_it_keeps_the_contract(sides):
    check_dataset(Npz(root=str(sides), flip=False))


def test_the_classes_have_the_names_in_the_file(sides):
    data = Npz(root=str(sides)).load()
    assert (data.name, data.classes, data.train.shape) == ("sides", ("left", "right"), (1, 8, 8))


def test_a_file_that_is_missing_or_none_is_a_sentence(tmp_path):
    (tmp_path / "words.npz").write_text("words")
    with pytest.raises(UsageError, match="needs its file"):
        Npz().load()
    with pytest.raises(DataError, match="there is no file"):
        Npz(root=str(tmp_path / "none.npz")).load()
    with pytest.raises(DataError, match="does not hold x_train"):
        Npz(root=str(tmp_path / "words.npz")).load()
