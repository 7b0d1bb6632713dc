"""Classes of ImageNet by their WordNet number: the subsets of the field, readable names, and label files.

An index of the 1,000 classes is the place of a number among the sorted ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ddbench import UsageError, did_you_mean

WNID = re.compile(r"n\d{8}")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # by which everybody normalises ImageNet and its parts
ENTRY = re.compile(r"(n\d{8})[\s:]+(\S.*)")

# As in the code of MTT (Cazenavette et al., CVPR 2022), in its order: ImageNette and ImageWoof are fast.ai's,
# squawk are birds, meow are cats, and yellow is what is yellow.
SUBSETS: dict[str, dict[str, str]] = {
    "nette": {
        "n01440764": "tench",
        "n02102040": "English springer",
        "n02979186": "cassette player",
        "n03000684": "chain saw",
        "n03028079": "church",
        "n03394916": "French horn",
        "n03417042": "garbage truck",
        "n03425413": "gas pump",
        "n03445777": "golf ball",
        "n03888257": "parachute",
    },
    "woof": {
        "n02096294": "Australian terrier",
        "n02093754": "Border terrier",
        "n02111889": "Samoyed",
        "n02088364": "beagle",
        "n02086240": "Shih-Tzu",
        "n02089973": "English foxhound",
        "n02087394": "Rhodesian ridgeback",
        "n02115641": "dingo",
        "n02099601": "golden retriever",
        "n02105641": "Old English sheepdog",
    },
    "squawk": {
        "n01806143": "peacock",
        "n02007558": "flamingo",
        "n01818515": "macaw",
        "n02051845": "pelican",
        "n02056570": "king penguin",
        "n01614925": "bald eagle",
        "n01843383": "toucan",
        "n01518878": "ostrich",
        "n01860187": "black swan",
        "n01819313": "sulphur-crested cockatoo",
    },
    "fruit": {
        "n07753275": "pineapple",
        "n07753592": "banana",
        "n07745940": "strawberry",
        "n07747607": "orange",
        "n07749582": "lemon",
        "n07768694": "pomegranate",
        "n07753113": "fig",
        "n07720875": "bell pepper",
        "n07718472": "cucumber",
        "n07742313": "Granny Smith",
    },
    "meow": {
        "n02123045": "tabby",
        "n02123159": "tiger cat",
        "n02123394": "Persian cat",
        "n02123597": "Siamese cat",
        "n02124075": "Egyptian cat",
        "n02129165": "lion",
        "n02129604": "tiger",
        "n02128925": "jaguar",
        "n02128757": "snow leopard",
        "n02127052": "lynx",
    },
    "yellow": {
        "n02206856": "bee",
        "n12057211": "yellow lady's slipper",
        "n07753592": "banana",
        "n07749582": "lemon",
        "n12144580": "corn",
        "n04146614": "school bus",
        "n03530642": "honeycomb",
        "n02129165": "lion",
        "n01773157": "black and gold garden spider",
        "n01531178": "goldfinch",
    },
}


def words(text: str) -> dict[str, str]:
    """The first name of each number in lines such as ``n01440764<tab>tench, Tinca tinca``."""
    found = (ENTRY.match(line) for line in text.splitlines())
    return {entry[1]: entry[2].split(",")[0].strip() for entry in found if entry}


def readable(wnids: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """A name for each number; those that several share (two cranes, two maillots) are told apart by the number."""
    names = {wnid: known.get(wnid, wnid) for wnid in wnids}
    count = Counter(names.values())
    return {wnid: f"{name} ({wnid})" if count[name] > 1 else name for wnid, name in names.items()}


def numbers(wanted: Iterable[str] | None, names: Mapping[str, str]) -> tuple[str, ...] | None:
    """The classes asked for, by name or number, as numbers; ``names`` are those of all numbers there are."""
    if wanted is None:
        return None
    known = {name: wnid for wnid, name in names.items()} | {wnid: wnid for wnid in names}
    for name in wanted:
        if name not in known:
            shown = ", ".join(list(names.values())[:10]) + (" and more" if len(names) > 10 else "")
            raise UsageError(f"dataset.classes names {name!r}{did_you_mean(name, known)}; the classes are {shown}")
    return tuple(known[name] for name in wanted)


def labels(text: str) -> dict[str, str]:
    """The number for each image, without suffix, in lines such as ``val_0.JPEG<tab>n03444034`` with or without more."""
    found = (re.match(r"([^\s,]+?)(?:\.\w+)?[\s,]+(n\d{8})\b", line) for line in text.splitlines())
    return {entry[1]: entry[2] for entry in found if entry}
