"""Run the clients, and write docs/clients.md: `make clients`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from . import publishing, results
from .catalogue import LANGUAGES, Client
from .experiments import EXPERIMENTS, run_experiment
from .scenarios import SCENARIOS, Hubs, Outcome, Run


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.list:
        _say(*SCENARIOS, *EXPERIMENTS, *(client.name for client in results.all_clients()))
        return 0
    if options.install:
        return _install(options.install)
    found = results.load()
    is_all = not (options.client or options.scenario or options.experiment or options.publish or options.page)
    if is_all or options.client or options.scenario:
        clients = installed([client for client in results.all_clients() if _is_chosen(client.name, options.client)])
        for scenario, client, outcome in run_all(clients, options.scenario, options.repeat, options.jobs):
            results.add_cell(found, client, scenario, outcome, _today())
    if is_all or options.experiment:
        for name, outcome in run_experiments(options.experiment):
            found["experiments"][name] = {"text": outcome.text, "fine": outcome.is_fine, "date": _today()}
    if is_all or options.publish:
        publishing.save(publishing.run_all())
    results.save(found)
    results.PAGE.write_text(results.page(found))
    problems = results.problems(found) + publishing.problems()
    _say(*problems)
    return 1 if problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make clients", description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the names of scenarios, experiments and clients")
    parser.add_argument("--install", nargs="+", metavar="FOLDER", help="only install the packages of these folders")
    parser.add_argument("--page", action="store_true", help="run nothing, only write the page from the latest results")
    parser.add_argument("--client", action="append", help="only this client (several times: these)")
    parser.add_argument("--scenario", action="append", help="only this scenario (several times: these)")
    parser.add_argument("--experiment", action="append", help="only this experiment (several times: these)")
    parser.add_argument("--publish", action="store_true", help="only the programs that publish")
    parser.add_argument("--repeat", type=int, default=1, help="how often each cell is run; the worst result counts")
    parser.add_argument("--jobs", type=int, default=4, help="how many clients run at a time")
    return parser


def _install(folders: Sequence[str]) -> int:
    failures = 0
    for language in LANGUAGES:
        if language.folder.name in folders and not language.missing():
            try:
                language.install()
            except (subprocess.SubprocessError, OSError) as exc:
                _say(f"the packages of {language.name} could not be installed: {exc}")
                failures += 1
    return min(failures, 1)


def installed(clients: list[Client]) -> list[Client]:
    """Install what the clients need; return those whose language is present."""
    usable = []
    for language in LANGUAGES:
        chosen = [client for client in clients if client.language is language]
        if chosen and (missing := language.missing()):
            _say(f"{missing} is missing: skipped {', '.join(client.name for client in chosen)}")
        elif chosen:
            language.install()
            usable += chosen
    return usable


def run_all(
    clients: Sequence[Client], scenarios: Sequence[str] | None = None, repeat: int = 1, jobs: int = 4
) -> list[tuple[str, Client, Outcome]]:
    """Run each client in each scenario, and print the outcomes."""
    start = time.monotonic()
    done = []
    with Hubs() as hubs, ThreadPoolExecutor(jobs) as pool:
        cells = [(scenario, client) for scenario in scenarios or SCENARIOS for client in clients]
        futures = [pool.submit(_run_cell, client, scenario, repeat, hubs) for scenario, client in cells]
        for (scenario, client), future in zip(cells, futures, strict=True):
            outcome = future.result()
            _say(f"{time.monotonic() - start:5.0f} s  {client.name:45} {scenario:20} {outcome.text}")
            if not outcome.is_fine:
                _say(*(f"         {line[:400]}" for line in outcome.details))
            done.append((scenario, client, outcome))
    return done


def _run_cell(client: Client, scenario: str, repeat: int, hubs: Hubs) -> Outcome:
    worst = None
    for _ in range(repeat):
        outcome = _attempt(client, scenario, hubs)
        if worst is None or worst.is_fine:
            worst = outcome
    assert worst is not None
    return worst


def _attempt(client: Client, scenario: str, hubs: Hubs) -> Outcome:
    try:
        return SCENARIOS[scenario](Run(client, hubs))
    except Exception:  # one program that cannot be run must not end the others
        return Outcome("error", False, tuple(traceback.format_exc().split("\n")))


def run_experiments(names: Sequence[str] | None = None) -> list[tuple[str, Outcome]]:
    done = []
    with Hubs() as hubs:
        for name in names or EXPERIMENTS:
            outcome = run_experiment(name, hubs)
            _say(f"{name}: {outcome.text}")
            if not outcome.is_fine:
                _say(*(f"         {line[:400]}" for line in outcome.details))
            done.append((name, outcome))
    return done


def _is_chosen(name: str, chosen: Sequence[str] | None) -> bool:
    return not chosen or name in chosen


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _say(*lines: str) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
