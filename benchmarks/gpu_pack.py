"""A folder that a bare GPU machine can run: ddbench and the packages that such a machine lacks as wheels, the tests and
benchmarks, the records so far, and the images as one solid archive. Nothing is fetched there.

60,000 small JPEGs share their headers: as one stream they are a third of what they are in a zip.
"""

from __future__ import annotations

import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib.metadata import distributions
from pathlib import Path

from benchmarks.gpu_records import RECORDS, ROOT
from ddbench.base.machine import code

# What ddbench imports beside torch and its like, which images of GPU machines bring.
WITH = (
    *("rich", "markdown-it-py", "mdurl", "pygments", "pandas", "python-dateutil", "click", "pluggy"),
    *("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions", "platformdirs"),
)
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux1")
TAKEN = ("tests", "benchmarks", "leaderboards/speedrun", "pyproject.toml")
DICTIONARY = 64 << 20
GO = r"""#!/bin/sh
# usage: sh go FOLDER [MINUTES [ARGUMENTS of benchmarks.gpu]]: the campaign on this machine; its records go into FOLDER
#        sh go FOLDER speedrun [ARGUMENTS of benchmarks.speedrun]: seeds of the speedrun; their tars go into FOLDER
set -eu
mkdir -p "$1"; out=$(cd "$1" && pwd); minutes=${2:-8}; shift; test $# -eq 0 || shift
cd "$(dirname "$0")"; python=${PYTHON:-python3}; home=${TMPDIR:-/tmp}/ddbench-gpu; mkdir -p "$home"
"$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
  --target "$home/site" wheels/*.whl
export PYTHONPATH="$home/site" DDBENCH_HOME="$home/home"
for record in records/*.json; do test -e "$out/${record##*/}" || cp "$record" "$out"; done
for data in *.tar.xz; do test ! -e "$data" || { unpacked="$home/${data%.xz}"; "$python" -c 'import lzma, shutil, sys
with lzma.open(sys.argv[1]) as packed, open(sys.argv[2], "wb") as out: shutil.copyfileobj(packed, out, 1 << 20)
' "$data" "$unpacked"; set -- --data "$unpacked" "$@"; }; done
test "$minutes" != speedrun || exec "$python" -m benchmarks.speedrun --out "$out" "$@"
exec "$python" -m benchmarks.gpu --minutes "$minutes" --records "$out" --code "CODE" "$@"
"""


def pack(folder: Path, data: Path | None, *, python: str = "3.12", wheels: bool = True) -> str:
    """Fill a folder that is not there yet; what it is, and the one command to run there.

    ``data`` is a zip of images. Without ``wheels`` no package index is asked.
    """
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder} is not empty; name another folder, or remove it")
    (folder / "wheels").mkdir(parents=True)
    for name in TAKEN:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.webp"))
        elif source.exists():
            shutil.copy(source, folder / name)
    shutil.copytree(RECORDS, folder / "records")
    _wheel(folder / "wheels")
    if wheels:
        _download(folder / "wheels", python)
    if data is not None:
        solid(data, folder / f"{data.stem}.tar.xz")
    (folder / "go").write_text(GO.replace("CODE", code()))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return (
        f"{folder}: {size / 2**20:.1f} MiB for Linux x86-64, Python {python}, with torch, torchvision, numpy, scipy, "
        f"scikit-learn, safetensors, pillow and pytest. Copy it to the machine, and run there:\n\n"
        f"    sh {folder.name}/go results 8"
    )


def _wheel(folder: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    list(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"]))


def _download(folder: Path, python: str) -> None:
    """The versions that are here, for that machine."""
    words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    words += ["--python-version", python, "--implementation", "cp"]
    words += [word for name in PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    here = {dist.name.lower().replace("_", "-"): dist.version for dist in distributions()}
    subprocess.run([*words, *(f"{name}=={here[name]}" for name in WITH if name in here)], check=True)


def solid(data: Path, out: Path) -> None:
    """The files of a zip as one compressed stream, class by class."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": DICTIONARY}]
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(data) as archive:
        archive.extractall(scratch)
        with lzma.LZMAFile(out, "w", filters=filters) as stream, tarfile.open(fileobj=stream, mode="w|") as made:
            for path in sorted(Path(scratch).rglob("*")):
                if path.is_file():
                    about = tarfile.TarInfo(path.relative_to(scratch).as_posix())
                    about.size = path.stat().st_size
                    with path.open("rb") as held:
                        made.addfile(about, held)
