"""Kills of anything at random moments, while people ask, branch, read and train, on both databases and on Ray.

In each round a crowd (`tests/attack/users.py`) makes 100 traces, and one victim falls: the server, its engine, a job's
worker; on PostgreSQL, which two servers share, also a connection of the database, the whole database, or it hangs, or a
server is suspended until the other may think it dead; on Ray, with two replicas, also one of these, and the engine is
the whole cluster. When all is quiet again, the whole database is audited
(`tests/attack/audit.py`), and every log is compared with what its readers saw.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psutil

from app.client import Conflict
from tests.attack.audit import Audit
from tests.attack.kill import LIVE, SPEC, kill_children, live_traces
from tests.attack.report import Report, Site, stop, tracebacks
from tests.attack.users import Seen, Users, patiently
from tests.benchmarks.serving import percentile
from tests.e2e.real_server import Server, new_server, runs, wait_until
from tests.patience import PATIENCE_S
from tests.postgres import Cluster, why_not

KILLS = 100
TRACES = 10_000
LONGEST_S = 2.0  # from the chosen share of a round's traces to the kill
AWAY_S = 2.0  # longest time that a killed server or database stays away
HANG_S = 4.0
SUSPENDED_S = 15.0
SETTINGS = {
    "sqlite": {},
    "postgres": {"OMNI_R1_DEAD_AFTER_S": "5"},
    "ray": {"OMNI_R1_ENGINE": "ray", "OMNI_R1_REPLICAS": "2", "RAY_ADDRESS": ""},
}


def attack(folder: Path, report: Report, rng: random.Random, scale: float) -> None:
    reasons = {"sqlite": None, "postgres": why_not(), "ray": None if find_spec("ray") else "it is not installed"}
    sites = [site for site, reason in reasons.items() if reason is None]
    for site, reason in reasons.items():
        if reason is not None:
            report.finding("chaos", f"{site} is left out: {reason}")
    kills, traces = (max(least, round(most * scale / len(sites))) for least, most in ((2, KILLS), (24, TRACES)))
    for site in sites:
        with database(site) as (url, cluster):
            servers = []
            for name in ("one", "two") if cluster is not None else ("one",):
                (folder / site / name).mkdir(parents=True)
                servers.append(new_server(folder / site / name))
            for server in servers:
                server.environment |= SETTINGS[site] | ({"OMNI_R1_DATABASE_URL": url} if url else {})
            url = url or f"sqlite:///{servers[0].home / 'omni-r1.db'}"
            Chaos(Site(site, servers, cluster), url, report, rng).run(kills, traces)


@contextmanager
def database(site: str) -> Iterator[tuple[str, Cluster | None]]:
    """A PostgreSQL of its own and its address, where the site has one."""
    if site != "postgres":
        yield "", None
        return
    cluster = Cluster().start()
    try:
        yield cluster.new(), cluster
    finally:
        cluster.remove()


class Chaos:
    """The rounds at one site, and the counts of what they found."""

    def __init__(self, site: Site, url: str, report: Report, rng: random.Random) -> None:
        self._site, self._url, self._report, self._rng = site, url, report, rng
        self._victims: dict[str, Callable[[Server], None]] = {
            "server": self._kill_server,
            "engine": lambda server: self._kill_child(server, "engine"),
            "worker": lambda server: self._kill_child(server, "worker"),
        }
        if site.cluster is not None:
            self._victims |= {
                "connection": self._end_connection,
                "database": self._restart_database,
                "hanging database": self._hang_database,
                "suspended server": self._suspend,
            }
        if site.name == "ray":
            self._victims |= {"actor": self._kill_actor}
        self._job: str | None = None
        self._counts: Counter[str] = Counter()
        self._starts: list[float] = []

    def run(self, kills: int, traces: int) -> None:
        """All rounds; the figures go to the report."""
        name = f"chaos_{self._site.name}"
        began, audit = time.monotonic(), None
        try:
            for server in self._site.servers:
                server.start()
                server.port = int(server.url.rsplit(":", 1)[1])  # so that readers find it again
            audit = Audit(self._url, [server.home for server in self._site.servers])
            # Every kind once, in random order, before chance decides.
            order = self._rng.sample(sorted(self._victims), len(self._victims))
            for number in range(kills):
                victim = order[number] if number < len(order) else self._rng.choice(order)
                for fault in self._round(victim, round(traces / kills), audit):
                    self._counts["faults"] += 1
                    self._report.finding(f"{name} round {number} ({victim})", fault)
                self._counts[victim] += 1
            for index, server in enumerate(self._site.servers):
                stop(server, self._report, f"{name}_{index + 1}")
                tracebacks(server, self._report, f"{name}_{index + 1}")
        finally:
            if audit is not None:
                audit.close()
            for server in self._site.servers:
                server.kill()
        for victim in self._victims:
            self._report.row(f"{name}_{victim.replace(' ', '_')}", self._counts[victim], "count")
        for what in ("traces", "readers", "jobs_resumed"):
            self._report.row(f"{name}_{what}", self._counts[what], "count")
        if self._starts:
            self._report.row(f"{name}_restart_p50", percentile(self._starts, 0.5), "s")
        self._report.row(f"{name}_lasted", time.monotonic() - began, "s")
        self._report.row(f"{name}_faults", self._counts["faults"], "count", limit=0)

    def _round(self, victim: str, traces: int, audit: Audit) -> list[str]:
        seen = Seen()
        self._keep_training()
        users = Users(self._site, self._rng, traces, seen)
        users.begin()
        moment = self._rng.uniform(0, 0.8) * traces
        wait_until(lambda: seen.traces >= moment, "the moment of the kill", PATIENCE_S)
        time.sleep(self._rng.uniform(0, LONGEST_S))
        self._victims[victim](self._rng.choice(self._site.servers))
        users.end()
        for server in self._site.servers:
            server.wait_ready()
        wait_until(self._quiet, "the end of every trace", PATIENCE_S)
        faults = seen.faults + audit.faults(working=self._working())
        faults += [f"a reader of {log_id} saw another log" for log_id in audit.differ(seen.logs)]
        self._counts["traces"] += seen.traces
        self._counts["readers"] += len(seen.logs)
        return faults

    def _quiet(self) -> bool:
        """Whether no trace is at work, and every running job has its worker."""
        with self._site.servers[0].client() as client:
            if live_traces(client):
                return False
            jobs = {job["id"] for job in client.jobs(status="running", limit=100)["data"]}
        return jobs <= self._working()

    def _working(self) -> frozenset[str]:
        """The jobs that have a worker: it runs in the job's folder."""
        found = set()
        for server in self._site.servers:
            for child in server.children():
                if runs(child, "training.jobs.worker"):
                    found |= {part.name for word in child.cmdline() for part in [Path(word)] if word.count("job_")}
        return frozenset(found)

    def _keep_training(self) -> None:
        """A job runs on the first server: a new one, or the interrupted one resumed."""
        with self._site.servers[0].client() as client:
            if self._job is not None:
                job = client.job(self._job)
                if job["status"] in LIVE:
                    return
                if job["checkpoints"]:
                    try:
                        client.resume_job(self._job)
                        self._counts["jobs_resumed"] += 1
                        return
                    except Conflict as error:
                        self._counts["faults"] += 1
                        self._report.finding("chaos", f"job {self._job} saved and cannot be resumed: {error}")
            self._job = patiently(lambda: client.create_job(SPEC)["id"])

    # ---- victims

    def _kill_server(self, server: Server) -> None:
        server.kill()
        time.sleep(self._rng.uniform(0, AWAY_S))
        began = time.monotonic()
        server.start()
        self._starts.append(time.monotonic() - began)

    def _kill_child(self, server: Server, kind: str) -> None:
        if kind == "worker":
            server = self._site.servers[0]
        with server.client() as client:
            waits = kind == "engine" or client.job(str(self._job))["status"] in LIVE
        if waits:
            wait_until(lambda: kill_children(server, workers=kind == "worker") > 0, f"a running {kind}", PATIENCE_S)

    def _kill_actor(self, server: Server) -> None:
        def actors() -> list[psutil.Process]:
            return [child for child in server.children() if runs(child, "ray::EngineActor")]

        wait_until(actors, "a replica", PATIENCE_S)
        self._rng.choice(actors()).kill()

    def _end_connection(self, _server: Server) -> None:
        """End half of the connections of the servers to the database."""
        assert self._site.cluster is not None
        rows = "SELECT pid FROM pg_stat_activity WHERE application_name = '' AND backend_type = 'client backend'"
        pids = [pid for (pid,) in self._site.cluster.execute(rows) if self._rng.random() < 0.5]
        for pid in pids:
            self._site.cluster.execute(f"SELECT pg_terminate_backend({pid})")

    def _restart_database(self, _server: Server) -> None:
        assert self._site.cluster is not None
        self._site.cluster.stop()
        time.sleep(self._rng.uniform(0, AWAY_S))
        self._site.cluster.start()

    def _hang_database(self, _server: Server) -> None:
        """As on a disk that answers nothing for seconds."""
        assert self._site.cluster is not None
        suspend(psutil.Process(self._site.cluster.pid), self._rng.uniform(0.5, HANG_S))

    def _suspend(self, server: Server) -> None:
        assert server.process is not None
        suspend(psutil.Process(server.process.pid), self._rng.uniform(1, SUSPENDED_S))


def suspend(process: psutil.Process, seconds: float) -> None:
    """Stop a process and its children for that long."""
    stopped = [process, *process.children(recursive=True)]
    for one in stopped:
        one.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    for one in stopped:
        if one.is_running():
            one.send_signal(signal.SIGCONT)
