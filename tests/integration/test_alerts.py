"""The alert rules that we hand out, before Prometheus' own tool: what fires when, on series as a core exposes them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
RULES = DOCS / "how-to" / "penstock-alerts.yml"
ALERTS = re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8"))

SCENARIOS = f"""
rule_files: [{RULES}]
evaluation_interval: 1m
tests:
  # a first stop, of a model whose counter was never scraped before; it is over an hour later
  - interval: 1m
    input_series:
      - series: penstock_fleet_last_stop_timestamp_seconds{{model="digits"}}
        values: _x5 270x100
    alert_rule_test:
      - {{eval_time: 4m, alertname: PenstockRolloutStopped, exp_alerts: []}}
      - eval_time: 5m
        alertname: PenstockRolloutStopped
        exp_alerts:
          - exp_labels: {{severity: page, model: digits}}
            exp_annotations:
              summary: A gate stopped a rollout of digits; penstock fleet status says why
      - {{eval_time: 70m, alertname: PenstockRolloutStopped, exp_alerts: []}}
  # paused for a quarter of an hour; another model that runs is none of that
  - interval: 1m
    input_series:
      - series: penstock_fleet_rollouts{{model="digits",state="paused"}}
        values: 0x4 1x20 0x10
      - series: penstock_fleet_rollouts{{model="faces",state="running"}}
        values: 1x40
    alert_rule_test:
      - {{eval_time: 10m, alertname: PenstockRolloutWaits, exp_alerts: []}}
      - eval_time: 21m
        alertname: PenstockRolloutWaits
        exp_alerts:
          - exp_labels: {{severity: ticket, model: digits, state: paused}}
            exp_annotations: {{summary: A rollout of digits is paused; somebody has to look}}
      - {{eval_time: 30m, alertname: PenstockRolloutWaits, exp_alerts: []}}
  # two phases and two versions are one alert; the series end when the devices are well again
  - interval: 1m
    input_series:
      - series: penstock_fleet_devices{{model="digits",version="v1",phase="reverted"}}
        values: 2x20 stale
      - series: penstock_fleet_devices{{model="digits",version="none",phase="failed"}}
        values: 1x20 stale
      - series: penstock_fleet_devices{{model="faces",version="v1",phase="committed"}}
        values: 9x40
    alert_rule_test:
      - eval_time: 16m
        alertname: PenstockUpdatesFailed
        exp_alerts:
          - exp_labels: {{severity: ticket, model: digits}}
            exp_annotations: {{summary: 3 devices could not take a version of digits; penstock fleet devices}}
      - {{eval_time: 30m, alertname: PenstockUpdatesFailed, exp_alerts: []}}
  # one of ten is switched off at night; three of ten are not
  - interval: 1m
    input_series:
      - series: penstock_fleet_silent_devices
        values: 1x39 3x40
      - series: penstock_fleet_known_devices
        values: 10x80
    alert_rule_test:
      - {{eval_time: 39m, alertname: PenstockDevicesSilent, exp_alerts: []}}
      - eval_time: 71m
        alertname: PenstockDevicesSilent
        exp_alerts:
          - exp_labels: {{severity: ticket}}
            exp_annotations: {{summary: 3 devices do not report; penstock fleet devices}}
  # two certificates of one version, of which one is broken
  - interval: 1m
    input_series:
      - series: penstock_fleet_alarm{{model="digits",artifact="a",certificate="1"}}
        values: 0x10
      - series: penstock_fleet_alarm{{model="digits",artifact="a",certificate="2"}}
        values: 0x4 1x5
    alert_rule_test:
      - {{eval_time: 4m, alertname: PenstockHarm, exp_alerts: []}}
      - eval_time: 6m
        alertname: PenstockHarm
        exp_alerts:
          - exp_labels: {{severity: page, model: digits}}
            exp_annotations:
              summary: "digits: audits found more harm than was certified; penstock fleet evidence"
"""


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed: Debian's package 'prometheus' has it")
    return found


def test_every_rule_is_valid_and_fires_when_it_should_and_not_before(promtool: str, tmp_path: Path) -> None:
    scenarios = tmp_path / "scenarios.yml"
    scenarios.write_text(SCENARIOS)
    for arguments in (["check", "rules", RULES], ["test", "rules", scenarios]):
        done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert [name for name in ALERTS if f"alertname: {name}\n" not in SCENARIOS] == [], "a rule that nothing fires"


def test_rules_are_about_metrics_that_there_are_and_the_page_names_each() -> None:
    reference = (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bpenstock_\w+", RULES.read_text(encoding="utf-8")))
    assert named
    assert [name for name in sorted(named) if f"`{name}`" not in reference] == []
    page = (DOCS / "how-to" / "roll-out-a-version.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(Penstock\w+)`", page, re.M) == ALERTS
