"""docker-compose.yml says what it must: the supervisor's own commands, health checks, and no secret in clear."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from backend import supervisor
from backend.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
OURS = ("migrate", "web", "worker", "worker-gpu", "beat")


def interpolated(value: Any) -> Any:
    """As Compose reads it with nothing set: ``${NAME:-default}`` becomes the default."""
    if isinstance(value, dict):
        return {key: interpolated(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [interpolated(inner) for inner in value]
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) if isinstance(value, str) else value


SERVICES: dict[str, Any] = interpolated(yaml.safe_load(TEXT)["services"])


def stage(name: str) -> str:
    """What the Dockerfile does in one stage."""
    return re.split(rf"^FROM \S+ AS {name}$", DOCKERFILE, flags=re.MULTILINE)[1].split("\nFROM ")[0]


def test_every_service_is_there() -> None:
    assert set(SERVICES) == {"postgres", "redis", *OURS}
    assert SERVICES["worker-gpu"]["profiles"] == ["gpu"]
    devices = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
    assert [name for name, service in SERVICES.items() if "profiles" in service] == ["worker-gpu"]


def test_the_commands_are_those_that_studio_up_runs() -> None:
    assert SERVICES["web"]["command"] == supervisor.web_command("0.0.0.0", 8400)
    assert SERVICES["worker"]["command"] == supervisor.worker_command(1)
    assert SERVICES["worker-gpu"]["command"] == supervisor.worker_command(1)
    assert SERVICES["beat"]["command"] == supervisor.beat_command("/var/lib/studio/beat-schedule")


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"migrate"}))
def test_a_service_says_when_it_is_healthy(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries", "start_period"} <= set(check)


@pytest.mark.parametrize("name", OURS)
def test_a_service_waits_for_what_it_needs(name: str) -> None:
    waits = {other: condition["condition"] for other, condition in SERVICES[name]["depends_on"].items()}
    expected = {"postgres": "service_healthy"}
    if name != "migrate":
        expected |= {"redis": "service_healthy", "migrate": "service_completed_successfully"}
    assert waits == expected


@pytest.mark.parametrize("name", OURS)
def test_the_environment_names_settings_that_exist(name: str) -> None:
    fields = {field.upper() for field in Settings.model_fields}
    environment = SERVICES[name]["environment"]
    assert set(environment) <= fields
    assert {"DATABASE_URL", "REDIS_URL", "ARTIFACTS_URL", "STUDIO_HOME", "PUBLIC_URL"} <= set(environment)


def test_secrets_come_from_the_environment_and_have_no_default() -> None:
    for variable in ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "PUBLIC_URL"):
        uses = re.findall(rf"\$\{{{variable}[^}}]*\}}", TEXT)
        assert uses, variable
        assert all(use.startswith(f"${{{variable}:?") for use in uses), uses
    for line in TEXT.splitlines():
        if re.search(r"password|secret|token", line, re.IGNORECASE) and not line.lstrip().startswith("#"):
            assert "${" in line or "$$" in line, line


def test_what_must_survive_lies_in_volumes() -> None:
    assert SERVICES["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]
    assert SERVICES["redis"]["volumes"] == ["redis:/data"]
    for name in OURS:
        assert SERVICES[name]["volumes"] == ["studio:/var/lib/studio"]
    named = {volume.split(":")[0] for service in SERVICES.values() for volume in service["volumes"]}
    assert set(yaml.safe_load(TEXT)["volumes"]) == named


def test_only_the_web_is_reachable_and_only_from_this_machine() -> None:
    assert {name: service["ports"] for name, service in SERVICES.items() if "ports" in service} == {
        "web": ["127.0.0.1:8400:8400"]
    }


def test_a_worker_has_time_to_drain() -> None:
    assert SERVICES["worker"]["stop_grace_period"] == SERVICES["worker-gpu"]["stop_grace_period"] == "2m"
    assert supervisor.DRAIN_SECONDS < 120


def test_every_image_is_a_stage_and_the_web_image_holds_no_torch() -> None:
    for name in OURS:
        target = SERVICES[name]["build"]["target"]
        assert SERVICES[name]["image"] == f"alignment-studio-{target}"
        assert "USER studio" in stage(target)
    assert re.findall(r"\"\.\[(.*?)\]\"", stage("web")) == ["backend,s3"]
    assert "torch" not in stage("web").lower()
    pinned = re.search(r'"(torch==[^"]+)"', (ROOT / "pyproject.toml").read_text())
    assert pinned is not None
    assert pinned[1] in stage("worker")
    assert pinned[1] in stage("worker-gpu")
    assert f'TORCH = "{pinned[1]}"' in (ROOT / "studio").read_text()


def test_the_web_has_the_sources_that_exported_scripts_carry() -> None:
    named = {
        path
        for template in (ROOT / "backend" / "runs" / "scripts").glob("*.jinja")
        for path in re.findall(r"source\(\"([^\"]+)\"", template.read_text())
    }
    assert {"objectives/preferences.py", "packing.py"} <= named
    assert all((ROOT / "worker" / path).is_file() for path in named)
    assert "COPY worker/ worker/" in stage("web")
