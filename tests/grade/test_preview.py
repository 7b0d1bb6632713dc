"""A picture of a set."""

from __future__ import annotations

import io

import torch
from PIL import Image

from ddbench import Curriculum, Preprocessing, SyntheticSet
from ddbench.grade.preview import preview


def test_the_preview_of_colour_images_is_in_colour_and_bounded():
    step = Preprocessing(torch.zeros(3), torch.ones(3))
    images = torch.zeros(30 * 12, 3, 32, 32)
    images[:, 0] = 1
    made = SyntheticSet(images, torch.eye(30).repeat_interleave(12, 0))
    picture = Image.open(io.BytesIO(preview(Curriculum((made,), ((0,),)), step, 30)))
    assert picture.mode == "RGB"
    assert picture.size == (20 * 34, 10 * 34)
    assert picture.getpixel((5, 5)) == (255, 0, 0)


def test_rows_are_images_of_each_class_and_stages_are_set_apart():
    """Two stages of three classes of 24 pixels' side, enlarged twice; gray values 1 to 12, on white."""
    values = torch.arange(1, 13).view(12, 1, 1, 1).expand(12, 1, 24, 24) / 255
    label = torch.eye(3)
    first = SyntheticSet(values[:6], label.repeat_interleave(2, 0))
    second = SyntheticSet(values[6:9], label)
    plan = Curriculum((first, second), ((0,), (0, 1)))
    picture = Image.open(io.BytesIO(preview(plan, Preprocessing(torch.zeros(1), torch.ones(1)), 3)))
    sheet = torch.full((3 * 26 + 4, 3 * 26), 255)
    for top, row in ((0, (1, 3, 5)), (26, (2, 4, 6)), (56, (7, 8, 9))):
        for i, value in enumerate(row):
            sheet[top : top + 24, 26 * i : 26 * i + 24] = value
    expected = sheet.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert picture.mode == "L"
    assert torch.equal(torch.tensor(list(picture.tobytes())).view(picture.height, picture.width), expected)
