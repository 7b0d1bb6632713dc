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
