"""What the browser gets: small, whole, and built from what the templates name."""

import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

FRONTEND = Path(__file__).resolve().parents[2] / "frontend"
DIST = FRONTEND / "dist"
FIRST_LOAD_LIMIT = 60 * 1024
"""Script and style of a first load, gzipped, without charts (ui.md)."""


@pytest.fixture(scope="module")
def manifest() -> dict[str, str]:
    path = DIST / "manifest.json"
    if not path.exists():
        pytest.skip("the frontend is not built")
    return json.loads(path.read_text())


def _with_static_imports(name: str) -> set[str]:
    """The chunk and all that the browser must fetch before it runs; dynamic imports come later."""
    found, todo = set(), [name]
    while todo:
        file = todo.pop()
        if file in found:
            continue
        found.add(file)
        todo += re.findall(r"""(?:from|import)["']\./([\w.-]+\.js)["']""", (DIST / file).read_text())
    return found


def test_first_load_is_small(manifest: dict[str, str]) -> None:
    files = {manifest["theme.ts"], manifest["styles.css"]} | _with_static_imports(manifest["app.ts"])
    sizes = {file: len(gzip.compress((DIST / file).read_bytes(), 9)) for file in files}
    assert sum(sizes.values()) <= FIRST_LOAD_LIMIT, sizes


def test_charts_and_forms_load_only_where_they_are_used(manifest: dict[str, str]) -> None:
    first = _with_static_imports(manifest["app.ts"])
    assert manifest["run-chart.ts"] not in first
    assert manifest["spec-form.ts"] not in first
    assert not any("uPlot" in (DIST / file).read_text() for file in first)


def test_every_island_is_found_by_its_file_name(manifest: dict[str, str]) -> None:
    islands = {path.name for path in (FRONTEND / "islands").glob("*-*.ts")}
    assert islands
    assert islands <= manifest.keys()
    app = "".join((DIST / file).read_text() for file in _with_static_imports(manifest["app.ts"]))
    for island in islands:
        assert f'"{island.removesuffix(".ts")}"' in app
        assert re.search(
            rf'customElements\.define\("{island.removesuffix(".ts")}"', (FRONTEND / "islands" / island).read_text()
        )


def test_templates_name_only_built_files_and_known_islands(manifest: dict[str, str]) -> None:
    islands = {path.stem for path in (FRONTEND / "islands").glob("*-*.ts")}
    for template in (FRONTEND / "templates").rglob("*.html"):
        text = template.read_text()
        assert set(re.findall(r"asset\(['\"]([^'\"]+)", text)) <= manifest.keys(), template
        assert set(re.findall(r"<([a-z]+(?:-[a-z]+)+)[\s>]", text)) <= islands, template


@pytest.mark.parametrize("pattern", [r"\sstyle=", r"\son(?:click|load|error|input|change|submit|key\w+|mouse\w+|pointer\w+|focus|blur)=", r"javascript:", r"https?://(?!www\.w3\.org)"])
def test_templates_hold_nothing_inline_and_nothing_from_elsewhere(pattern: str) -> None:
    offenders = [
        f"{template.relative_to(FRONTEND)}: {match.group()}"
        for template in (FRONTEND / "templates").rglob("*.html")
        for match in re.finditer(
            pattern, re.sub(r"\{#.*?#\}|http://www\.w3\.org[^'\"]*", "", template.read_text(), flags=re.S)
        )
    ]
    assert not offenders


def test_scripts_of_templates_carry_the_nonce_or_are_data() -> None:
    for template in (FRONTEND / "templates").rglob("*.html"):
        for tag in re.findall(r"<script\b[^>]*>", template.read_text()):
            assert 'nonce="{{ nonce }}"' in tag or 'type="application/json"' in tag, (template, tag)


def test_the_pure_parts_of_the_islands() -> None:
    node = shutil.which("node")
    if node is None or not (FRONTEND / "node_modules" / "esbuild").exists():
        pytest.skip("node or the frontend's dependencies are missing")
    done = subprocess.run(
        [node, "--test", str(Path(__file__).with_name("lib.test.mjs"))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_types() -> None:
    node = shutil.which("node")
    compiler = FRONTEND / "node_modules" / "typescript" / "bin" / "tsc"
    if node is None or not compiler.exists():
        pytest.skip("node or the frontend's dependencies are missing")
    done = subprocess.run([node, str(compiler), "--noEmit"], cwd=FRONTEND, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
