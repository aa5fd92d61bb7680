"""What a release is made of: one version everywhere, a wheel with all modules and nothing else, which imports."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

import latephase

ROOT = Path(__file__).parents[1]
SOURCES = ("src", "pyproject.toml", "README.md", "LICENSE")


def release(version: str) -> list[int]:
    """The release that a version is, or comes before: 0.1.dev3 before 0.1, which is 0.1.0."""
    numbers = [int(part) for part in version.partition(".dev")[0].split(".")]
    return numbers + [0] * (3 - len(numbers))


def copied(place: Path) -> Path:
    """A copy of the sources, so that the build leaves nothing behind; without their history."""
    place.mkdir(exist_ok=True)
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, place)
    return place


def built(sources: Path, out: Path) -> Path:
    """The wheel of sources."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*build, str(out), str(sources)], check=True, capture_output=True, text=True)
    (found,) = out.glob("*.whl")
    return found


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(archive.read(name).decode())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of the sources without their history."""
    return built(copied(tmp_path_factory.mktemp("sources")), tmp_path_factory.mktemp("wheel"))


def test_the_version_is_that_of_the_last_tag_and_behind_it_of_the_next(tmp_path: Path) -> None:
    sources = copied(tmp_path / "sources")

    def git(*command: str) -> None:
        who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(sources), *who, *command], check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "--message", "a release")
    git("tag", "v9.8.7")
    assert metadata(built(sources, tmp_path / "tagged"))["Version"] == "9.8.7"
    git("commit", "--allow-empty", "--message", "the next thing")
    assert metadata(built(sources, tmp_path / "behind"))["Version"] == "9.8.8.dev1"


def test_the_wheel_has_all_files_of_the_package_and_nothing_else(wheel: Path) -> None:
    package = ROOT / "src" / "latephase"
    files = {f"latephase/{p.relative_to(package).as_posix()}" for p in package.rglob("*") if p.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert inside == {name for name in files if "__pycache__" not in name}
    assert "latephase/py.typed" in inside


def test_what_the_wheel_says_of_itself(wheel: Path) -> None:
    said = metadata(wheel)
    with zipfile.ZipFile(wheel) as archive:
        assert any(name.endswith("/LICENSE") for name in archive.namelist())
    assert release(said["Version"]) == release(latephase.__version__)
    assert [r for r in said.get_all("Requires-Dist") or [] if "extra ==" not in r] == ["torch>=2.11"]
    assert {"study", "lightning", "transformers", "deepxde", "ray"} <= set(said.get_all("Provides-Extra") or [])


def test_the_wheel_imports_and_steps(wheel: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(wheel)!r})\n"
        "import latephase, torch\n"
        "from latephase import HessianFree, finish\n"
        f"assert latephase.__file__.startswith({str(wheel)!r}), latephase.__file__\n"
        "theta = torch.nn.Parameter(torch.ones(2))\n"
        "opt = HessianFree([theta])\n"
        "assert opt.step(lambda: (theta.square().sum(), theta)) < 2.0\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True)


def test_it_is_cited_in_the_version_that_it_is() -> None:
    yaml = pytest.importorskip("yaml")  # of the documentation
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert release(cited["version"]) == release(latephase.__version__)
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= cited.keys()
    (paper,) = cited["references"]
    assert (paper["title"], paper["year"]) == ("Late-Phase Second-Order Training", 2022)
    assert all("name" in author or "family-names" in author for author in cited["authors"])
