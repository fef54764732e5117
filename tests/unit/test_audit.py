"""The audit says what it found, what nobody has reviewed, and what it could not ask about."""

import datetime
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from launch.audit import Ignored, judge, main, read_ignored, run_pip_audit
from policy.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
TODAY = datetime.date(2026, 12, 1)
REVIEWED = Ignored(id="CVE-1", package="a", reason="the broken parser is never given anything", review_by=TODAY)


def package(name: str, *vulnerabilities: str) -> dict[str, Any]:
    found = [{"id": v, "aliases": [f"CVE-{v}"], "fix_versions": ["2.0"]} for v in vulnerabilities]
    return {"name": name, "version": "1.0", "vulns": found}


def unknown(name: str) -> dict[str, Any]:
    return {"name": name, "skip_reason": "Dependency not found on PyPI"}


def judged(*packages: dict[str, Any], ignored: tuple[Ignored, ...] = (), today: datetime.date = TODAY) -> Any:
    return judge({"dependencies": [*packages], "fixes": []}, ignored, today)


def test_a_clean_audit_says_how_much_it_covered() -> None:
    assert judged(package("a"), package("b")) == (True, ["2 packages audited"])


def test_nothing_asked_is_not_called_clean() -> None:
    passes, lines = judged(unknown("a"), unknown("b"))
    assert passes
    assert lines == ["NOT AUDITED: the advisory service answered for none of 2 packages"]


def test_a_package_that_was_not_asked_about_is_named() -> None:
    passes, lines = judged(package("a"), unknown("b"))
    assert passes
    assert lines == ["1 packages audited", "NOT AUDITED: 1 packages that the service does not know: b"]


def test_a_vulnerability_fails_it_with_the_version_that_mends_it() -> None:
    passes, lines = judged(package("a", "1"), package("b"))
    assert not passes
    assert "VULNERABLE a 1.0: 1; fixed in 2.0" in lines[1]


def test_a_reviewed_one_passes_under_either_name_until_its_day() -> None:
    passes, lines = judged(package("a", "1"), ignored=(REVIEWED,))
    assert passes
    assert lines[1] == f"ignored a 1.0: 1: {REVIEWED.reason}"
    passes, lines = judged(package("a", "1"), ignored=(REVIEWED,), today=TODAY + datetime.timedelta(days=1))
    assert not passes
    assert lines[1].startswith("REVIEW a 1.0")


def test_a_review_counts_for_its_own_package_and_is_to_be_removed_when_done_with() -> None:
    passes, lines = judged(package("a"), package("b", "1"), ignored=(REVIEWED,))
    assert not passes
    assert "CVE-1 is ignored and no longer found: remove it" in lines


@pytest.mark.parametrize(
    "text",
    ['[[ignored]]\nid = "A"', '[[ignored]]\nid = "A"\npackage = "a"\nreason = "no"\nreview_by = 2027-01-01', "[[["],
)
def test_an_incomplete_review_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "audit_ignored.toml").write_text(text)
    with pytest.raises(ConfigError, match="reason"):
        read_ignored(tmp_path / "audit_ignored.toml")


def test_the_reviews_of_this_repository_are_complete() -> None:
    read_ignored(ROOT / "launch" / "audit_ignored.toml")


@pytest.mark.parametrize(
    ("problem", "code"),
    [("requests.exceptions.ConnectionError: no such host", 0), ("no answer within 180 s", 0), ("bad line 3", 1)],
)
def test_only_a_service_that_is_away_may_be_passed_over(
    problem: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("launch.audit.run_pip_audit", lambda options: (None, problem))
    assert main([]) == code
    assert capsys.readouterr().out.startswith("NOT AUDITED: ")


class Advisories(BaseHTTPRequestHandler):
    """Knows of one advisory, against numpy, in the form of OSV."""

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = query["package"]["name"]
        affected = [{"package": {"name": "numpy", "ecosystem": "PyPI"}, "ranges": [], "versions": []}]
        advisory = {"id": "GHSA-test", "aliases": [], "summary": "A test.", "affected": affected}
        body = json.dumps({"vulns": [advisory]} if name == "numpy" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Advisories)
    thread = threading.Thread(target=server.serve_forever, name="advisories", daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_real_pip_audit_reports_in_the_form_that_is_judged(service: str) -> None:
    command = [sys.executable, "-m", "launch.audit", "-s", "osv", "--osv-url", service]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended
    assert "VULNERABLE numpy" in ended.stdout
    assert ended.stdout.count("VULNERABLE") == 1


def test_the_real_pip_audit_without_a_service_is_told_apart() -> None:
    report, problem = run_pip_audit(["-s", "osv", "--osv-url", "http://127.0.0.1:1/"])
    assert report is None
    assert "requests.exceptions." in problem
