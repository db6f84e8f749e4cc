"""The alert rules that we hand out, before Prometheus' own tool: what fires when, on series as a core exposes them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
RULES = DOCS / "how-to" / "penstock-alerts.yml"
SERVING = DOCS / "how-to" / "penstock-serving-alerts.yml"
BOTH = pytest.mark.parametrize(
    ("rules", "page"),
    [(RULES, "roll-out-a-version.md"), (SERVING, "see-what-a-core-does.md")],
    ids=["fleet", "serving"],
)

FLEET_SCENARIOS = f"""
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

SERVING_SCENARIOS = f"""
rule_files: [{SERVING}]
evaluation_interval: 1m
tests:
  # an outage that goes on, and one that was over before anybody looked; another objective is kept
  - interval: 1m
    input_series:
      - {{series: 'penstock_slo_burn_rate{{model="digits",objective="answered",window="1h"}}', values: 20x30}}
      - {{series: 'penstock_slo_burn_rate{{model="digits",objective="answered",window="5m"}}', values: 100x30}}
      - {{series: 'penstock_slo_burn_rate{{model="digits",objective="fast",window="1h"}}', values: 1x30}}
      - {{series: 'penstock_slo_burn_rate{{model="digits",objective="fast",window="5m"}}', values: 1x30}}
      - {{series: 'penstock_slo_burn_rate{{model="faces",objective="answered",window="1h"}}', values: 20x30}}
      - {{series: 'penstock_slo_burn_rate{{model="faces",objective="answered",window="5m"}}', values: 0x30}}
    alert_rule_test:
      - {{eval_time: 1m, alertname: PenstockAllowanceBurnsFast, exp_alerts: []}}
      - eval_time: 3m
        alertname: PenstockAllowanceBurnsFast
        exp_alerts:
          - exp_labels: {{severity: page, model: digits, objective: answered, window: 1h}}
            exp_annotations:
              summary: "digits: a month's allowance (answered) is gone in two days at this rate; penstock core slo"
  # slower, and for longer
  - interval: 1m
    input_series:
      - {{series: 'penstock_slo_burn_rate{{model="digits",objective="fast",window="6h"}}', values: 7x60}}
      - {{series: 'penstock_slo_burn_rate{{model="digits",objective="fast",window="30m"}}', values: 7x20 1x40}}
    alert_rule_test:
      - {{eval_time: 10m, alertname: PenstockAllowanceBurns, exp_alerts: []}}
      - eval_time: 16m
        alertname: PenstockAllowanceBurns
        exp_alerts:
          - exp_labels: {{severity: page, model: digits, objective: fast, window: 6h}}
            exp_annotations:
              summary: "digits: a month's allowance (fast) is gone in five days at this rate; penstock core slo"
      - {{eval_time: 40m, alertname: PenstockAllowanceBurns, exp_alerts: []}}
  # two failures in a hundred where one may fail, one slow answer in a hundred where ten may be slow
  - interval: 5m
    input_series:
      - {{series: 'penstock_slo_requests_total{{model="digits"}}', values: 0+100x950}}
      - {{series: 'penstock_slo_bad_requests_total{{model="digits",objective="answered"}}', values: 0+2x950}}
      - {{series: 'penstock_slo_bad_requests_total{{model="digits",objective="fast"}}', values: 0+1x950}}
      - {{series: 'penstock_slo_target{{model="digits",objective="answered"}}', values: 0.99x950}}
      - {{series: 'penstock_slo_target{{model="digits",objective="fast"}}', values: 0.9x950}}
    alert_rule_test:
      - eval_time: 75h
        alertname: PenstockAllowanceBurnsSlowly
        exp_alerts:
          - exp_labels: {{severity: ticket, model: digits, objective: answered}}
            exp_annotations:
              summary: "digits: more than its allowance (answered) over three days; penstock core slo"
  - interval: 1m
    input_series:
      - {{series: penstock_live, values: 1x5 0x10}}
      - {{series: 'penstock_refused_total{{code="queue-full"}}', values: 0+120x60}}
      - {{series: 'penstock_refused_total{{code="not-found"}}', values: 0+6000x60}}
      - {{series: 'penstock_drift_shifted_features{{model="digits",version="v2"}}', values: 3x90}}
      - {{series: 'penstock_drift_shifted_features{{model="faces",version="v1"}}', values: 0x90}}
    alert_rule_test:
      - {{eval_time: 7m, alertname: PenstockCoreNotLive, exp_alerts: []}}
      - eval_time: 8m
        alertname: PenstockCoreNotLive
        exp_alerts:
          - exp_labels: {{severity: page}}
            exp_annotations: {{summary: An engine hangs; the core's log names the model}}
      - eval_time: 20m
        alertname: PenstockRefuses
        exp_alerts:
          - exp_labels: {{severity: ticket}}
            exp_annotations:
              summary: "2 requests a second find no room; penstock core explain, penstock core top"
      - {{eval_time: 30m, alertname: PenstockDrift, exp_alerts: []}}
      - eval_time: 61m
        alertname: PenstockDrift
        exp_alerts:
          - exp_labels: {{severity: ticket, model: digits, version: v2}}
            exp_annotations:
              summary: "digits v2: 3 columns are not distributed as they were; penstock core drift"
"""


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed: Debian's package 'prometheus' has it")
    return found


@pytest.mark.parametrize(
    ("rules", "scenarios"), [(RULES, FLEET_SCENARIOS), (SERVING, SERVING_SCENARIOS)], ids=["fleet", "serving"]
)
def test_every_rule_is_valid_and_fires_when_it_should_and_not_before(
    promtool: str, tmp_path: Path, rules: Path, scenarios: str
) -> None:
    file = tmp_path / "scenarios.yml"
    file.write_text(scenarios)
    for arguments in (["check", "rules", rules], ["test", "rules", file]):
        done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert [name for name in alerts(rules) if f"alertname: {name}\n" not in scenarios] == [], (
        "a rule that nothing fires"
    )


@BOTH
def test_rules_are_about_metrics_that_there_are_and_the_page_names_each(rules: Path, page: str) -> None:
    assert unknown(rules) == []
    named = (DOCS / "how-to" / page).read_text(encoding="utf-8")
    assert re.findall(r"^\| `(Penstock\w+)`", named, re.M) == alerts(rules)


def test_the_dashboard_is_about_metrics_that_there_are() -> None:
    dashboard = DOCS / "how-to" / "penstock-dashboard.json"
    assert unknown(dashboard) == []
    document = json.loads(dashboard.read_text(encoding="utf-8"))
    panels = [panel for panel in document["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])
    for panel in panels:
        assert panel["targets"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
    places = [[one["gridPos"][key] for key in "xywh"] for one in document["panels"]]
    cells = [(x + dx, y + dy) for x, y, w, h in places for dx in range(w) for dy in range(h)]
    assert len(set(cells)) == len(cells), "panels lie on each other"
    assert max(x for x, _ in cells) < 24


def test_prometheus_reads_every_query_of_the_dashboard(promtool: str, tmp_path: Path) -> None:
    document = json.loads((DOCS / "how-to" / "penstock-dashboard.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in document["panels"] for target in panel.get("targets", ())]
    assert len(queries) > 10
    rules = [{"record": f"query_{number}", "expr": _filled(query)} for number, query in enumerate(queries)]
    file = tmp_path / "queries.json"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def alerts(rules: Path) -> list[str]:
    return re.findall(r"- alert: (\w+)", rules.read_text(encoding="utf-8"))


def unknown(file: Path) -> list[str]:
    """Metrics that a file names and the reference does not; histograms have a sum, a count and buckets."""
    reference = (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bpenstock_\w+", file.read_text(encoding="utf-8")))
    assert named
    known = {
        one for name in named for one in (name, re.sub(r"_(bucket|sum|count)$", "", name)) if f"`{one}`" in reference
    }
    return sorted(name for name in named if not {name, re.sub(r"_(bucket|sum|count)$", "", name)} & known)


def _filled(query: str) -> str:
    """Put in what Grafana does."""
    return query.replace("$__rate_interval", "5m").replace("$model", ".*")
