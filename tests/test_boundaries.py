"""Who may know whom, what an import loads, and what a wheel holds."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OPTIONAL_OR_HEAVY = (
    "roma",
    "safetensors",
    "tqdm",
    "matplotlib",
    "bvhio",
    "triton",
    "tensorboard",
    "scipy",
    "diffusers",
)


def run(code: str, cwd: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *flags, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_the_folder_kernels_is_no_package_of_its_own() -> None:
    # From the checkout, `import kernels` would find it, and shadow the package of that name on PyPI.
    said = run("import kernels", ROOT)
    assert said.returncode == 1
    assert "ImportError: import this package as 'sinmdm.kernels'" in said.stderr


def test_importing_loads_torch_and_nothing_of_motion(tmp_path: Path) -> None:
    # torch brings modules of its own (numpy, at times triton's stub): only what our packages add counts.
    code = f"""
import sys, torch
before = set(sys.modules)
import sinmdm, sinmdm.kernels
ours = set(sys.modules) - before
print(sorted(name for name in ours if name.split(".")[0] in {OPTIONAL_OR_HEAVY!r}))
print(sorted(name for name in ours if name.startswith("sinmdm.") and not name.startswith("sinmdm.kernels")))
print(any(name.startswith("torch.utils.cpp_extension") for name in ours))
"""
    said = run(code, tmp_path)
    assert said.returncode == 0, said.stderr
    libraries, modules, compiler = said.stdout.splitlines()
    assert libraries == "[]"
    assert modules == "[]"
    assert compiler == "False"


def test_diffusion_loads_torch_and_the_kernels(tmp_path: Path) -> None:
    # diffusers is for sinmdm.diffusion.schedulers alone, which nothing else imports.
    code = f"""
import sys, torch
before = set(sys.modules)
import sinmdm.diffusion
ours = set(sys.modules) - before
print(sorted(name for name in ours if name.split(".")[0] in {OPTIONAL_OR_HEAVY!r}))
print("sinmdm.diffusion.schedulers" in ours)
sys.modules.update(dict.fromkeys({OPTIONAL_OR_HEAVY!r}))
x = sinmdm.diffusion.sample(lambda x, t: x, (1, 2, 3), sinmdm.diffusion.Schedule.cosine(4), seed=0)
print(bool(x.isfinite().all()))
try:
    import sinmdm.diffusion.schedulers
except ImportError as error:
    print(error)
"""
    said = run(code, tmp_path)
    assert said.returncode == 0, said.stderr
    libraries, schedulers, finite, refused = said.stdout.splitlines()
    assert libraries == "[]"
    assert schedulers == "False"
    assert finite == "True"
    assert refused == "sinmdm.diffusion.schedulers needs diffusers: pip install diffusers"


def test_runs_and_commands_do_without_diffusers(tmp_path: Path) -> None:
    code = """
import sys
import sinmdm.run, sinmdm.cli, sinmdm.training
print("diffusers" in sys.modules)
"""
    said = run(code, tmp_path)
    assert said.returncode == 0, said.stderr
    assert said.stdout == "False\n"


def test_the_kernels_alone_need_torch_only(tmp_path: Path) -> None:
    # Every library of the layers above is missing here, and so is Triton.
    blocked = (*OPTIONAL_OR_HEAVY, "pytest", "hypothesis")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({blocked!r}))
import torch
from sinmdm import kernels
q = torch.ones(1, 5, 1, 4)
print(kernels.window_attention(q, q, q, window=1, backend="reference").sum().item())
"""
    said = run(code, tmp_path)
    assert said.returncode == 0, said.stderr
    assert float(said.stdout) == pytest.approx(20)


def imported(path: Path) -> list[tuple[int, str]]:
    """(level, module) of every import in a file; level 0 is absolute."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


KERNEL_FILES = sorted((ROOT / "kernels").rglob("*.py"))


@pytest.mark.parametrize("path", KERNEL_FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_arrows_point_down(path: Path) -> None:
    depth = len(path.relative_to(ROOT / "kernels").parts)  # 1 for kernels/x.py: one dot stays inside kernels
    allowed = {"torch", "triton", "ninja", *sys.stdlib_module_names}
    for level, module in imported(path):
        assert level <= depth, f"a relative import leaves kernels/: {'.' * level}{module}"
        if level == 0:
            inside = module == "sinmdm.kernels" or module.startswith("sinmdm.kernels.")
            assert inside or module.split(".")[0] in allowed, f"imports {module}"


def test_imported_sees_through_every_spelling(tmp_path: Path) -> None:
    # The check above is worth as much as this function.
    file = tmp_path / "x.py"
    file.write_text("import roma.utils as r\ndef f():\n    from sinmdm import motion\n    from ...motion import x\n")
    assert imported(file) == [(0, "roma.utils"), (0, "sinmdm"), (3, "motion")]


def test_models_know_the_kernels_public_names_only() -> None:
    # sinmdm/kernels is a symlink to kernels/, which the layer above may use but not look into.
    for path in sorted((ROOT / "sinmdm").rglob("*.py")):
        if (ROOT / "sinmdm" / "kernels") in path.parents:
            continue
        private = private_kernel_names(path.read_text())
        assert private == [], f"{path.relative_to(ROOT)} imports {', '.join(private)}"


def private_kernel_names(source: str) -> list[str]:
    """What a module of the layer above imports from the kernels by a name that begins with an underscore."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found += [name for name in names if "kernels._" in name]
    return found


@pytest.mark.parametrize(
    ("source", "private"),
    [
        ("from .kernels import backends, Schedule", []),
        ("from .kernels import backends, _native", ["kernels._native"]),
        ("from ..kernels._dispatch import choose", ["kernels._dispatch.choose"]),
        ("from sinmdm.kernels import _window", ["sinmdm.kernels._window"]),
        ("import sinmdm.kernels._state", ["sinmdm.kernels._state"]),
    ],
)
def test_private_names_are_found(source: str, private: list[str]) -> None:
    assert private_kernel_names(source) == private


def test_sources_know_nothing_of_python() -> None:
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.suffix in (".h", ".cpp", ".cu"):
            text = path.read_text()
            for header in ("Python.h", "pybind11", "torch/extension.h", "ATen/"):
                assert header not in text, f"{path.relative_to(ROOT)} includes {header}"
            # The CUDA sources are compiled without a torch header (glue.cpp is the one that knows torch).
            assert path.suffix != ".cu" or "torch/" not in text, path


def packages() -> tuple[list[str], dict[str, str]]:
    tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return setuptools["packages"], setuptools["package-dir"]


def test_every_folder_with_code_is_packaged() -> None:
    listed, _ = packages()
    folders = {p.parent for p in (ROOT / "kernels").rglob("*.py")}
    folders |= {
        p.parent for p in (ROOT / "sinmdm").rglob("*.py") if (ROOT / "sinmdm" / "kernels") not in (p.parent, *p.parents)
    }
    names = {"sinmdm.kernels.csrc"}
    for folder in folders:
        relative = folder.relative_to(ROOT).parts
        names.add(".".join(("sinmdm", *relative) if relative[0] == "kernels" else relative))
    assert sorted(listed) == sorted(names)


def test_the_symlink_and_package_dir_agree() -> None:
    _, folders = packages()
    assert folders["sinmdm.kernels"] == "kernels"
    link = ROOT / "sinmdm" / "kernels"
    if not link.is_symlink():
        pytest.skip("this checkout was made without symbolic links")
    assert link.resolve() == ROOT / "kernels"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, bytes]]:
    """(name, content) of every file of a wheel of this tree, built without the extension as an isolated build does."""
    pytest.importorskip("setuptools", reason="needs setuptools >= 77 to build a wheel", minversion="77")
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git checkout, whose files a clean copy is made of")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    tree = tmp_path_factory.mktemp("tree")
    for name in listed.stdout.decode().rstrip("\0").split("\0"):
        source, target = ROOT / name, tree / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    code = """
import os
os.environ["SINMDM_NATIVE"] = "0"
from setuptools import build_meta
print("WHEEL", build_meta.build_wheel("dist"))
"""
    said = run(code, tree)
    assert said.returncode == 0, said.stderr[-3000:]
    name = said.stdout.rpartition("WHEEL")[2].strip()
    assert name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(tree / "dist" / name) as archive:
        return [(entry, archive.read(entry)) for entry in archive.namelist()]


def test_the_wheel_has_one_top_level_name(wheel: list[tuple[str, bytes]]) -> None:
    content = dict(wheel)
    top_level = next(text for name, text in wheel if name.endswith("/top_level.txt"))
    assert top_level.decode().split() == ["sinmdm"]
    tops = {name.split("/")[0] for name in content}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sinmdm"}


def test_the_wheel_has_what_it_needs_to_build_at_first_use(wheel: list[tuple[str, bytes]]) -> None:
    names = {name for name, _ in wheel}
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.suffix in (".cpp", ".cu", ".h"):
            assert f"sinmdm/kernels/csrc/{path.relative_to(ROOT / 'csrc').as_posix()}" in names
    assert {"sinmdm/py.typed", "sinmdm/kernels/py.typed", "sinmdm/kernels/_native.py"} <= names
    for path in KERNEL_FILES:
        assert f"sinmdm/{path.relative_to(ROOT).as_posix()}" in names


def test_the_wheel_has_no_tests_and_no_binaries(wheel: list[tuple[str, bytes]]) -> None:
    for name, _ in wheel:
        assert not name.startswith(("tests", "bench", "kernels", "csrc")), name
        assert not name.endswith((".so", ".pyc", ".o")), name


def test_the_wheels_kernels_work_from_a_zip_of_files(wheel: list[tuple[str, bytes]], tmp_path: Path) -> None:
    # Unpacked as an installer would, and imported from there instead of from the checkout.
    for name, content in wheel:
        target = tmp_path / "site" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path / "site")!r})
import sinmdm.kernels as kernels
from sinmdm.kernels import _native
print(kernels.__file__)
print(_native.source_folder())
print(len(_native.cpu_sources(_native.source_folder())))
print(kernels.philox_normal((1, 4), seed=0, backend="reference")[0, 0].item())
"""
    said = run(code, tmp_path)
    assert said.returncode == 0, said.stderr
    file, folder, sources, normal = said.stdout.splitlines()
    assert file.startswith(str(tmp_path))
    assert folder == str(tmp_path / "site" / "sinmdm" / "kernels" / "csrc")
    assert int(sources) >= 4
    assert float(normal) == pytest.approx(0.991137, abs=2e-6)
