"""Plugins of other packages: installed with pip, loaded one by one, isolated when they are broken."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import pytest
import torch
from annotated_types import Ge
from tiny import THREAD, Answer, ddbench, words

from ddbench import Dataset, Memory, Pixels, Store, SyntheticSet, hookimpl, plugins
from ddbench.errors import DataError, PluginError, UsageError
from ddbench.hookspecs import HOOKS
from ddbench.plugins import KINDS, Registry, registry
from ddbench.testing import toy_task

MEANS = '''
"""Class means, sharpened a little in each step: a whole plugin in public names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from ddbench import Curriculum, Problem, SyntheticSet, hookimpl


@dataclass
class State:
    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Means:
    """Noisy class means that move away from the mean of all."""

    name = "means"
    steps: Annotated[int, Ge(0), "iterations"] = 3
    push: Annotated[float, Gt(0), "how far they move"] = 0.1

    def init(self, problem: Problem) -> State:
        drawn = problem.real.draw(problem.ipc)
        return State(drawn.images.clone(), drawn.labels)

    def step(self, problem: Problem, state: State, k: int) -> tuple[State, dict]:
        overall = problem.real.draw(2).images.mean(0)
        state.images += self.push * (state.images - overall)
        return state, {"loss": state.images.square().mean()}

    def result(self, problem: Problem, state: State) -> SyntheticSet:
        return SyntheticSet(state.images, state.labels, 0.02)


@dataclass(frozen=True)
class Halves:
    """Two stages that do not build on one another."""

    name = "halves"
    stages = 2

    def next(self, task: Problem, done: Curriculum) -> Problem | None:
        from dataclasses import replace

        from ddbench import share

        return None if len(done) == 2 else replace(task, ipc=share(task.ipc, 2, len(done)), frozen=done)

    def phases(self, n: int) -> tuple:
        return (tuple(range(n)),)


@hookimpl
def register_matchers(register):
    register(Means, recipes=Path(__file__).with_name("recipes.toml"))


@hookimpl
def register_schedulers(register):
    register(Halves)
'''
RECIPES = """
[[recipe]]
match = { dataset = "toy" }
source = "its author"
verified = true
[recipe.matcher]
push = 0.25
"""
TWIN = '''
from dataclasses import dataclass
from ddbench import hookimpl

@dataclass(frozen=True)
class Other:
    """Another method of the same name."""
    name = "means"
    steps = 0
    def init(self, problem): return None
    def step(self, problem, state, k): return state, {}
    def result(self, problem, state): return None

@hookimpl
def register_matchers(register):
    register(Other)
'''
BAD_HOOK = """
from ddbench import hookimpl

@hookimpl
def register_matchers(registry):
    pass
"""


def package(folder: Path, name: str, source: str, **files: str) -> Path:
    """A package as a third party would write it, with an entry point of the same name."""
    module = name.replace("-", "_")
    home = folder / name
    (home / module).mkdir(parents=True)
    (home / module / "__init__.py").write_text(source)
    for file, text in files.items():
        (home / module / f"{file}.toml").write_text(text)
    (home / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        f'[project]\nname = "{name}"\nversion = "1.2.3"\n'
        f'[project.entry-points.ddbench]\n{module} = "{module}"\n'
        f'[tool.hatch.build.targets.wheel]\npackages = ["{module}"]\n'
    )
    return home


def install(target: Path, *homes: Path) -> str:
    """Install packages with pip into a folder, offline."""
    quiet = ["--quiet", "--disable-pip-version-check", "--no-build-isolation", "--no-deps", "--no-index"]
    command = [sys.executable, "-m", "pip", "install", *quiet, "--target", str(target), *map(str, homes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return str(target)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> str:
    """One plugin that works, and three that are broken in three ways."""
    base = tmp_path_factory.mktemp("third-party")
    return install(
        base / "site",
        package(base, "dd-means", MEANS, recipes=RECIPES),
        package(base, "dd-no-import", "import a_module_that_nobody_has\n"),
        package(base, "dd-leaves", "import sys\nsys.exit('bye')\n"),
        package(base, "dd-bad-hook", BAD_HOOK),
    )


@pytest.fixture(scope="module")
def twins(tmp_path_factory, installed) -> str:
    base = tmp_path_factory.mktemp("twins")
    return install(base / "site", package(base, "dd-means-too", TWIN))


def script(*arguments: str, path: str, home: Path) -> Answer:
    """The installed command in a process of its own, with more packages to find."""
    env = os.environ | THREAD | {"PYTHONPATH": os.pathsep.join([path, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-P", "-m", "ddbench", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env | {"DDBENCH_HOME": str(home)})
    return Answer(done.returncode, done.stdout, done.stderr)


MEANS_RUN = ["--dataset", "toy", "-o", "dataset.per_class=20", "-o", "network.width=8", "-o", "protocol.steps=6"]
ALONE = ["--no-random", "--no-ceiling", "--students", "1"]


def test_the_matcher_of_a_package_that_pip_installed_runs_beside_broken_ones(installed, tmp_path):
    arguments = [*MEANS_RUN, "--matcher", "means", "--scheduler", "pdd", "-o", "scheduler.stages=2", "--ipc", "2"]
    answer = script("run", *arguments, *ALONE, "--out", str(tmp_path / "runs"), "--json", path=installed, home=tmp_path)
    assert answer.code == 0, answer.err
    (row,) = answer.json
    assert (row["matcher"], row["scheduler"], row["status"], row["n"]) == ("means", "pdd", "ok", 1)
    (folder,) = (tmp_path / "runs").iterdir()
    spec = json.loads((folder / "spec.json").read_text())
    assert spec["matcher"]["options"] == {"steps": 3, "push": 0.25}  # from the recipe in the package
    assert spec["versions"]["matcher means"] == "dd-means 1.2.3"
    for name in ("dd-no-import", "dd-leaves", "dd-bad-hook"):
        assert answer.err.count(f"of {name} is skipped") == 1, answer.err
    assert "Traceback" not in answer.err


def test_a_broken_plugin_is_named_once_with_its_distribution_and_the_reason(forks, installed, tmp_path):
    answer = forks.run(["plugins", "--json"], tmp_path, (installed,))
    assert answer.code == 3
    broken = {b["package"]: b["reason"] for b in answer.json["broken"]}
    assert set(broken) == {"dd-no-import", "dd-leaves", "dd-bad-hook"}
    assert "ModuleNotFoundError" in broken["dd-no-import"]
    assert "a_module_that_nobody_has" in broken["dd-no-import"]
    assert "SystemExit" in broken["dd-leaves"]
    assert "registry" in broken["dd-bad-hook"]  # the argument that the hook does not have
    found = {p["name"]: p["package"] for p in answer.json["plugins"]}
    assert found["means"] == "dd-means"
    assert found["tesla"] == "ddbench"


def test_info_of_a_name_that_nobody_has_says_which_plugins_could_not_be_loaded(forks, installed, tmp_path):
    answer = forks.run(["info", "meanest"], tmp_path, (installed,))
    assert answer.code == 2
    assert "did you mean 'means'" in answer.err
    for name in ("dd-no-import", "dd-leaves", "dd-bad-hook"):
        assert f"of {name} is skipped" in answer.err
    answer = forks.run(["info", "dd_no_import"], tmp_path, (installed,))
    assert answer.code == 3
    assert "'dd_no_import' is not available: plugin 'dd_no_import' of dd-no-import is skipped" in answer.err


def test_info_shows_the_options_and_recipes_of_a_third_party_plugin(forks, installed, tmp_path):
    (about,) = forks.run(["info", "means", "--json"], tmp_path, (installed,)).json
    assert (about["package"], about["version"]) == ("dd-means", "1.2.3")
    push = next(o for o in about["options"] if o["option"] == "matcher.push")
    assert (push["default"], push["what"]) == (0.1, "how far they move")
    assert about["recipes"][0]["source"] == "its author"


def test_options_of_a_third_party_matcher_are_checked_by_the_harness(forks, installed, tmp_path):
    for option, said in (("matcher.push=0", "greater than 0"), ("matcher.psh=1", "did you mean 'push'")):
        arguments = ["run", *MEANS_RUN, "--matcher", "means", "-o", option, "--out", str(tmp_path / "runs")]
        answer = forks.run(arguments, tmp_path / "home", (installed,))
        assert answer.code == 2
        assert said in answer.err
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("matcher", ["means", "random"])
def test_a_third_party_scheduler_composes_with_every_matcher(forks, installed, tmp_path, matcher):
    arguments = ["run", *MEANS_RUN, "--matcher", matcher, "--scheduler", "halves", "--ipc", "3"]
    answer = forks.run([*arguments, *ALONE, "--out", tmp_path / "runs", "--json"], tmp_path / "home", (installed,))
    assert answer.code == 0, answer.err
    assert answer.json[0]["scheduler"] == "halves"


def test_a_third_party_run_that_is_killed_goes_on_to_the_same_bits(forks, installed, tmp_path):
    """State of a class that only the plugin knows comes back from its checkpoint."""
    from signal import SIGKILL

    arguments = ["run", *MEANS_RUN, "--matcher", "means", *ALONE, "--checkpoint-seconds", "0"]
    whole = forks.run([*arguments, "--out", tmp_path / "a"], tmp_path / "home", (installed,))
    assert whole.code == 0, whole.err
    for count in (2, 1):
        where = [*arguments, "--out", tmp_path / "b"]
        moment: dict[str, Any] = {"event": "stage 0 distilling", "count": count, "signal": SIGKILL}
        assert forks.run(where, tmp_path / "home", (installed,), **moment).code == -SIGKILL
    assert forks.run([*arguments, "--out", tmp_path / "b"], tmp_path / "home", (installed,)).code == 0
    (a,), (b,) = ((tmp_path / name).glob("*/distilled.safetensors") for name in "ab")
    assert a.read_bytes() == b.read_bytes()


def test_two_plugins_with_one_name_are_an_error_that_names_both_packages(forks, installed, twins, tmp_path):
    for arguments in (["list", "matchers"], ["run", *MEANS_RUN, "--matcher", "means"]):
        answer = forks.run(arguments, tmp_path, (installed, twins))
        assert answer.code == 3
        last = answer.err.strip().splitlines()[-1]
        assert "two matchers are called 'means'" in last
        assert "dd-means 1.2.3" in last
        assert "dd-means-too 1.2.3" in last
        assert "Traceback" not in answer.err


def test_a_broken_plugin_that_is_asked_for_exits_3_with_its_reason(forks, installed, tmp_path):
    answer = forks.run(["run", *MEANS_RUN, "--matcher", "dd_no_import"], tmp_path, (installed,))
    assert answer.code == 3
    last = answer.err.strip().splitlines()[-1]
    assert "dd-no-import" in last
    assert "a_module_that_nobody_has" in last


def listed(forks, path: str, home: Path, **variables: str) -> Answer:
    env = THREAD | {"DDBENCH_HOME": str(home)} | variables
    return forks.run(["plugins", "--json"], home, (path,), env=env)


@pytest.mark.parametrize(
    ("given", "ours", "broken"),
    [("dd-means", True, set()), ("DD_Means, dd.leaves", True, {"dd-leaves"}), ("", False, set()), (",", False, set())],
)
def test_only_the_distributions_that_are_named_are_loaded(forks, installed, tmp_path, given, ours, broken):
    answer = listed(forks, installed, tmp_path, DDBENCH_LOAD_PLUGINS=given)
    assert answer.code == (3 if broken else 0), answer.err
    assert {b["package"] for b in answer.json["broken"]} == broken
    found = {plugin["package"] for plugin in answer.json["plugins"]}
    assert found == {"ddbench", *(["dd-means"] if ours else [])}


def test_a_distribution_that_is_not_there_is_named(forks, installed, tmp_path):
    answer = listed(forks, installed, tmp_path, DDBENCH_LOAD_PLUGINS="dd-meens")
    assert answer.code == 2
    assert "DDBENCH_LOAD_PLUGINS names 'dd-meens'" in answer.err
    assert "did you mean 'dd-means'" in answer.err


def test_a_broken_plugin_is_an_error_where_all_are_asked_for(forks, installed, tmp_path):
    answer = listed(forks, installed, tmp_path, DDBENCH_STRICT_PLUGINS="1")
    assert answer.code == 3
    for name in ("dd-no-import", "dd-leaves", "dd-bad-hook", "a_module_that_nobody_has"):
        assert name in answer.err
    assert "Traceback" not in answer.err
    whole = {"DDBENCH_STRICT_PLUGINS": "1", "DDBENCH_LOAD_PLUGINS": "dd-means"}
    assert listed(forks, installed, tmp_path, **whole).code == 0
    assert listed(forks, installed, tmp_path, DDBENCH_STRICT_PLUGINS="0").json["broken"]
    wrong = listed(forks, installed, tmp_path, DDBENCH_STRICT_PLUGINS="yes")
    assert wrong.code == 2
    assert "must be 1" in wrong.err


def test_a_run_of_a_package_that_is_gone_is_still_compared_and_not_resumed(forks, installed, tmp_path):
    arguments = ["run", *MEANS_RUN, "--matcher", "means", *ALONE, "--out", tmp_path / "runs"]
    assert forks.run(arguments, tmp_path / "home", (installed,)).code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    resumed = forks.run(["run", "--resume", folder.name, "--out", tmp_path / "runs"], tmp_path / "home")
    assert resumed.code in (2, 3)
    assert "no matcher called 'means'" in resumed.err
    assert forks.run(["compare", "--out", tmp_path / "runs", "--json"], tmp_path).json[0]["matcher"] == "means"


def test_evaluating_a_set_needs_no_matcher(forks, installed, tmp_path):
    """Copied alone to another machine, a file needs nothing but the test data: not the package that made it."""
    arguments = ["run", *MEANS_RUN, "--matcher", "means", *ALONE, "--out", tmp_path / "runs"]
    assert forks.run(arguments, tmp_path / "home", (installed,)).code == 0
    (path,) = (tmp_path / "runs").glob("*/distilled.safetensors")
    answer = forks.run(["eval", path, "--students", "1", "--json"], tmp_path / "elsewhere")
    assert answer.code == 0, answer.err


# --------------------------------------------------------------------------------- in this process


@dataclass(frozen=True)
class Good:
    """A matcher that does nothing."""

    name = "good"
    steps: Annotated[int, Ge(0)] = 0

    def init(self, problem: Any) -> None: ...
    def step(self, problem: Any, state: Any, k: int) -> Any: ...
    def result(self, problem: Any, state: Any) -> Any: ...


class Distribution:
    def __init__(self, name: str) -> None:
        self.name, self.version = name, "7"


def entry(name: str, module: Any, package: str = "some-package") -> EntryPoint:
    """An entry point that gives an object instead of importing one."""

    class Given(EntryPoint):
        def load(self) -> Any:
            if isinstance(module, BaseException):
                raise module
            return module

    made = Given(name, "somewhere", "ddbench")
    vars(made).update(dist=Distribution(package))
    return made


def module(**hooks: Any) -> ModuleType:
    made = ModuleType("a_plugin")
    for name, function in hooks.items():
        setattr(made, name, hookimpl(function))
    return made


def loaded(*modules: Any) -> Registry:
    made = Registry()
    for index, given in enumerate(modules):
        made.load(entry(f"plugin-{index}", given, f"package-{index}"))
    return made


def test_a_registered_class_is_found_with_its_package():
    found = loaded(module(register_matchers=lambda register: register(Good)))
    assert found.broken == []
    plugin = found.get("matcher", "good")
    assert (plugin.cls, plugin.package, plugin.version) == (Good, "package-0", "7")
    assert found.names("matcher") == ["good"]
    assert found.names("dataset") == []


class NotFrozen:
    name = "x"


@dataclass
class Thawed:
    name = "x"


@dataclass(frozen=True)
class Nameless:
    steps: int = 0


@dataclass(frozen=True)
class BadName:
    name = "No Such Name!"


@dataclass(frozen=True)
class Stepless:
    name = "stepless"

    def init(self, problem: Any) -> None: ...
    def result(self, problem: Any, state: Any) -> None: ...


class Skipped(BaseException):
    """As pytest.importorskip raises one."""


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (module(register_matchers=lambda register: register(NotFrozen)), "@dataclass(frozen=True)"),
        (module(register_matchers=lambda register: register(Thawed)), "@dataclass(frozen=True)"),
        (module(register_matchers=lambda register: register(Good())), "@dataclass(frozen=True)"),
        (module(register_matchers=lambda register: register(Nameless)), "Nameless.name must match"),
        (module(register_matchers=lambda register: register(BadName)), "'No Such Name!'"),
        (module(register_matchers=lambda register: register(Stepless)), "no method step()"),
        (module(register_datasets=lambda register: register(Good)), "no method load()"),
        (module(register_matchers=lambda register: register(Good, recipes=Path("/no/such.toml"))), "FileNotFoundError"),
        (module(register_matchers=lambda register: 1 / 0), "ZeroDivisionError"),
        (module(register_matchers=lambda other: None), "other"),
        (module(register_matcher=lambda register: None), "register_matcher"),
        (ModuleType("empty"), "implements none of the hooks"),
        (ImportError("cannot import\nanything"), "ImportError: cannot import"),
        (SystemExit(0), "SystemExit"),
        (SyntaxError("bad"), "SyntaxError"),
        (RecursionError("deep"), "RecursionError"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit(), "GeneratorExit"),
        (Skipped("not here"), "Skipped: not here"),
        (Mute(), "Mute: (it cannot say what)"),
        (RuntimeError("\x1b[2J\u202e red"), "RuntimeError: ?[2J? red"),
        (RuntimeError("x" * 10_000), "xxx..."),
    ],
)
def test_a_broken_plugin_is_skipped_with_the_reason_and_the_rest_works(given, reason):
    found = loaded(given, module(register_matchers=lambda register: register(Good)))
    (broken,) = found.broken
    assert reason in str(broken)
    assert "package-0" in str(broken)
    assert "\n" not in str(broken)
    assert found.names("matcher") == ["good"]


def test_what_a_broken_plugin_may_have_brought_is_said_when_a_name_is_not_found():
    """Its entry point need not be called like its matcher."""
    found = loaded(ImportError("cannot import that"), module(register_matchers=lambda register: register(Good)))
    with pytest.raises(
        UsageError, match=r"no matcher called 'better'.*'plugin-0' of package-0 is skipped: ImportError"
    ):
        found.get("matcher", "better")


def test_the_version_of_what_a_plugin_computes_is_what_its_class_declares():
    def declaring(**more: Any) -> Any:
        return dataclass(frozen=True)(type("Changed", (Good,), more))

    found = loaded(module(register_matchers=lambda register: register(declaring(version="2"))))
    assert found.get("matcher", "good").declared == "2"
    assert loaded(module(register_matchers=lambda register: register(Good))).get("matcher", "good").declared == "1"
    option = declaring(version="x", __annotations__={"version": str})
    assert loaded(module(register_matchers=lambda register: register(option))).get("matcher", "good").declared == "1"
    (broken,) = loaded(module(register_matchers=lambda register: register(declaring(version=("a", 1))))).broken
    assert "version must be a short text or a whole number" in str(broken)


def test_a_plugin_that_fails_half_way_registers_nothing():
    def half(register: Any) -> None:
        register(Good)
        raise RuntimeError("half")

    found = loaded(module(register_matchers=half))
    assert found.plugins == {}
    assert len(found.broken) == 1


def test_an_interruption_while_plugins_load_is_not_taken_for_a_broken_plugin():
    """The signal arrives between two instructions of the plugin; one that raises the exception itself is broken."""

    def waits(register: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process of a shell ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            loaded(module(register_matchers=waits))
    finally:
        signal.signal(signal.SIGINT, before)


def test_two_plugins_with_one_name_name_both_packages():
    one = module(register_matchers=lambda register: register(Good))
    with pytest.raises(DataError, match=r"two matchers are called 'good'.*package-0 7.*package-1 7"):
        loaded(one, module(register_matchers=lambda register: register(Good)))


def test_the_same_name_in_two_kinds_is_no_conflict():
    @dataclass(frozen=True)
    class Metric:
        name = "good"

        def __call__(self, logits: Any, targets: Any) -> float:
            return 0.0

    one = module(register_matchers=lambda register: register(Good), register_metrics=lambda register: register(Metric))
    assert set(loaded(one).plugins) == {("matcher", "good"), ("metric", "good")}


def test_an_unknown_name_is_an_error_with_the_nearest_and_the_valid_ones():
    found = loaded(module(register_matchers=lambda register: register(Good)))
    with pytest.raises(UsageError, match=r"no matcher called 'god'; did you mean 'good'\? \(valid ones: good\)"):
        found.get("matcher", "god")
    with pytest.raises(UsageError, match="no dataset called 'good'"):
        found.get("dataset", "good")


def test_a_broken_plugin_that_is_asked_for_is_an_error_with_its_reason():
    found = loaded(ImportError("no luck"))
    with pytest.raises(DataError, match=r"'plugin-0' is not available: .*package-0.*no luck"):
        found.get("matcher", "plugin-0")


RECIPE = '[[recipe]]\nmatch = {{ dataset = "toy" }}\n{}\n[recipe.matcher]\nsteps = 3\n'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("not toml [", "TOMLDecodeError"),
        ("", "KeyError"),
        (RECIPE.format('source = "me"'), "verified"),
        (RECIPE.format("verified = true"), "source"),
    ],
)
def test_a_plugin_whose_recipes_are_wrong_is_broken(tmp_path, text, reason):
    (tmp_path / "r.toml").write_text(text)
    found = loaded(module(register_matchers=lambda register: register(Good, recipes=tmp_path / "r.toml")))
    (broken,) = found.broken
    assert reason in str(broken)


def test_a_recipe_file_may_serve_several_plugins(tmp_path):
    (tmp_path / "r.toml").write_text(
        RECIPE.format('name = "good"\nsource = "me"\nverified = true')
        + RECIPE.format('name = "other"\nsource = "you"\nverified = false')
        + RECIPE.format('source = "all"\nverified = false')
    )
    found = loaded(module(register_matchers=lambda register: register(Good, recipes=tmp_path / "r.toml")))
    assert [r.source for r in found.get("matcher", "good").recipes] == ["me", "all"]
    first = found.get("matcher", "good").recipes[0]
    assert (first.match, first.options, first.verified) == ({"dataset": "toy"}, {"matcher": {"steps": 3}}, True)


def test_the_built_in_plugins_enter_through_entry_points_like_any_other(monkeypatch):
    """Without the entry points there is nothing."""
    registry.cache_clear()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(plugins, "entry_points", lambda group: EntryPoints())
            assert registry().plugins == {}
            answer = ddbench("run", *words("tesla"))
            assert answer.code == 2
            assert "no dataset called 'toy'" in answer.err
    finally:
        registry.cache_clear()
    assert {"mtt", "random", "tesla"} < set(registry().names("matcher"))
    assert set(KINDS) == {kind for kind, _ in registry().plugins}
    assert len(HOOKS) == len(KINDS)


# --------------------------------------------------------------------------------- what a plugin may leave out


def test_options_that_are_called_as_optional_methods_are_options():
    @dataclass(frozen=True)
    class Bank:
        name = "bank"
        steps = 0
        memory: int = 3
        notes: str = ""
        resume: bool = False
        published: str = ""

        def init(self, problem):
            return problem.sample()

        def step(self, problem, state, k):
            return state, {}

        def result(self, problem, state):
            return SyntheticSet(state.images.clone(), state.labels.clone())

    task, bank = toy_task(), Bank()
    plugins.check_class("matcher", Bank)
    plugins.resume_with(bank, {})
    assert plugins.notes_of(bank) == {}
    assert plugins.memory_of(bank, task) == Memory(task.state_bytes())
    assert plugins.published_names(plugins.Plugin("matcher", "bank", Bank, "p", "1")) == ()


def test_published_names_that_are_none_are_refused():
    wrong = dataclass(frozen=True)(
        type(
            "Wrong",
            (),
            {"name": "w", "steps": 0, "published": "MTT"} | dict.fromkeys(("init", "step", "result"), lambda *_: None),
        )
    )
    with pytest.raises(ValueError, match=r"'w'\.published must be a tuple of ddbench\.Published, got 'MTT'"):
        plugins.check_class("matcher", wrong)


# --------------------------------------------------------------------------------- datasets


def dataset_of(load: Any) -> Any:
    return dataclass(frozen=True)(type("Mine", (), {"name": "mine", "load": lambda self: load()}))()


def sound() -> Dataset:
    pixels = torch.arange(40 * 3 * 4 * 4).remainder(251).view(40, 3, 4, 4).to(torch.uint8)
    return Dataset.split("mine", ("a", "b"), (pixels, torch.arange(40) % 2), (pixels[:6], torch.arange(6) % 2))


def part(name: str, **changes: Any) -> Any:
    def load() -> Dataset:
        held = sound()
        return replace(held, **{name: replace(getattr(held, name), **changes)})

    return load


@pytest.mark.parametrize(
    ("load", "error", "said"),
    [
        (lambda: None, PluginError, r"load\(\) of dataset 'mine' must return a Dataset, not NoneType"),
        (lambda: sys.exit(0), PluginError, r"load\(\) of dataset 'mine' raised SystemExit"),
        (lambda: 1 / 0, PluginError, r"load\(\) of dataset 'mine' raised ZeroDivisionError"),
        (lambda: replace(sound(), classes=("a", "a")), DataError, "a tuple of names that differ"),
        (lambda: replace(sound(), classes=["a", "b"]), DataError, "a tuple of names that differ"),
        (lambda: replace(sound(), classes=("a", "b", "c")), DataError, "class 2 has no train images"),
        (part("test", targets=torch.tensor([0, 1, 0, 1, 0, 7])), DataError, r"test targets must lie in 0\.\.1"),
        (part("validation", targets=torch.full((4,), -1)), DataError, r"validation targets must lie in 0\.\.1"),
        (part("test", targets=torch.zeros(6)), DataError, "test targets must be int64"),
        (part("test", targets=torch.zeros(6, 1, dtype=torch.int64)), DataError, "test targets must be int64"),
        (part("test", targets=torch.zeros(5, dtype=torch.int64)), DataError, "6 test images but 5 targets"),
        (part("test", pixels=torch.zeros(6, 3, 4, 4)), DataError, "test pixels must be uint8"),
        (part("test", pixels=torch.zeros(6, 3, 4, dtype=torch.uint8)), DataError, "test pixels must be uint8"),
        (part("test", pixels=torch.zeros(6, 3, 5, 5, dtype=torch.uint8)), DataError, r"test has images \(3, 5, 5\)"),
        (part("test", classes=9), DataError, "in 9 classes"),
    ],
)
def test_a_dataset_that_is_not_what_it_says_is_refused_before_it_is_used(load, error, said):
    with pytest.raises(error, match=said):
        plugins.loaded(dataset_of(load))


def test_pixels_that_are_not_contiguous_give_the_same_batches_and_the_same_digest():
    """Batches would take over their strides, and convolutions give other bits."""
    held = sound()
    turned = held.train.pixels.store.array.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    other = plugins.loaded(dataset_of(part("train", pixels=Pixels(Store(turned), held.train.pixels.rows))))
    rows = torch.arange(5)
    assert other.digest == held.digest
    assert other.train[rows].images.stride() == held.train[rows].images.stride()
    assert torch.equal(other.train[rows].images, held.train[rows].images)


def test_a_dataset_that_changes_the_process_while_it_is_loaded_changes_nobody_else(capsys):
    def load() -> Dataset:
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(3)
        print("loading")
        return sound()

    before = torch.get_rng_state()
    assert plugins.loaded(dataset_of(load)).digest == sound().digest
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(before, torch.get_rng_state())
    assert capsys.readouterr().out == ""


def test_a_metric_cannot_be_called_what_records_say_of_a_student():
    @dataclass(frozen=True)
    class Diverged:
        name = "diverged"

        def __call__(self, logits: Any, targets: Any) -> float:
            return 0.0

    (broken,) = loaded(module(register_metrics=lambda register: register(Diverged))).broken
    assert "a metric cannot be called 'diverged'" in str(broken)


def test_what_a_plugin_changes_while_it_is_imported_is_set_back(forks, tmp_path):
    source = """
import atexit, random, sys, warnings
import numpy as np
import torch
from ddbench import hookimpl
torch.set_default_dtype(torch.float64)
torch.set_num_threads(2)
torch.use_deterministic_algorithms(True)
torch.manual_seed(1), random.seed(1), np.random.seed(1)
warnings.simplefilter("ignore")
print("hello from a plugin")
@hookimpl
def register_matchers(register): pass
"""
    folder = tmp_path / "site"
    (folder / "changes-1.dist-info").mkdir(parents=True)
    (folder / "changes-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: changes\nVersion: 1\n")
    (folder / "changes-1.dist-info" / "entry_points.txt").write_text("[ddbench]\nchanges = changes_all\n")
    (folder / "changes_all.py").write_text(source)
    arguments = ["run", *words("random"), *ALONE, "--json"]
    alone = forks.run([*arguments, "--out", tmp_path / "alone"], tmp_path / "home")
    beside = forks.run([*arguments, "--out", tmp_path / "beside"], tmp_path / "home", (str(folder),))
    assert beside.code == 0, beside.err
    assert [row["accuracy_mean"] for row in beside.json] == [row["accuracy_mean"] for row in alone.json]
    assert "hello from a plugin" in beside.err
    (one,), (other,) = (list((tmp_path / name).glob("*/distilled.safetensors")) for name in ("alone", "beside"))
    assert one.parent.name == other.parent.name
    assert one.read_bytes() == other.read_bytes()
