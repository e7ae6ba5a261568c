"""How far a whole run is: all samples, the rate, the time left and the last error."""

from __future__ import annotations

import csv
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

from virnucpro.embed.budget import Budget, read_budget
from virnucpro.errors import InputError, VirnucproError
from virnucpro.report.step_logs import read_step_log, summarise_step_logs
from virnucpro.status.errors import LastError, last_error
from virnucpro.status.samples import SampleStatus, newest, sample_status
from virnucpro.status.shards import STATES, ShardStatus

__all__ = ["Rates", "RunStatus", "run_status"]

_CONFIG = "config/config.yaml"
_SHEET = "config/samples.tsv"
_OF_A_SAMPLE = ("genes", "split", "plan", "embeddings", "requests")
_RATED = 8  # shards, those that were finished last, whose step logs give the achieved rate


@dataclass(frozen=True)
class Rates:
    """Tokens a second; None where nothing tells it."""

    now: float | None  # of all jobs that are under way, as their logs said last
    achieved: float | None  # of a device, in the shards that were finished last
    planned: float | None  # of a device, as the token budget measured it
    device: str | None  # on which the token budget was measured


@dataclass(frozen=True)
class RunStatus:
    """How far a run is."""

    samples: list[SampleStatus]  # in the order of the sheet
    shards: dict[str, int]  # number of all shards by state
    sequences: int  # of all samples that are split
    sequences_done: int
    tokens: int  # of all samples that are split
    tokens_done: int
    tokens_per_second: Rates
    seconds_left: float | None  # until all that is split is embedded; None if not known
    left_by: str | None  # what that estimate rests on
    last_error: LastError | None
    unknown: list[str]  # what cannot be told, a sentence each


def run_status(workdir: Path, now: float | None = None) -> RunStatus:
    """Say how far a run is, from the files of its working directory.

    It may be called at any time, during a run too.

    Args:
        workdir: the working directory of a run.
        now: seconds since the epoch; by default, what the clock says.

    Raises:
        InputError: the folder is no working directory of the workflow.
    """
    now = time.time() if now is None else now
    unknown: list[str] = []
    found = [sample_status(workdir, name, now) for name in _sample_names(workdir, unknown)]
    samples, shards_of = [sample for sample, _ in found], {s.name: shards for s, shards in found}
    shards = [shard for each in shards_of.values() for shard in each]
    if unsplit := sum(not each for each in shards_of.values()):
        unknown.append(f"{unsplit} sample(s) not split yet: what they hold is not counted")
    rates = _rates(workdir, shards_of, unknown)
    tokens = sum(sample.tokens or 0 for sample in samples)
    done = sum(sample.tokens_done for sample in samples)
    is_split = any(shards_of.values()) or all(sample.step == "done" for sample in samples)
    left, left_by = _time_left(tokens - done, rates) if is_split else (None, None)
    counts = Counter(shard.state for shard in shards)
    return RunStatus(
        samples=samples,
        shards={state: counts[state] for state in STATES},
        sequences=sum(sample.sequences or 0 for sample in samples),
        sequences_done=sum(sample.sequences_done for sample in samples),
        tokens=tokens,
        tokens_done=done,
        tokens_per_second=rates,
        seconds_left=left,
        left_by=left_by,
        last_error=_last_error(workdir, samples, shards_of, now),
        unknown=unknown,
    )


def _last_error(
    workdir: Path,
    samples: list[SampleStatus],
    shards_of: dict[str, list[ShardStatus]],
    now: float,
) -> LastError | None:
    open_shards = {
        name: {shard.name for shard in shards if shard.state != "done"}
        for name, shards in shards_of.items()
    }
    finished = [sample.name for sample in samples if sample.step == "done"]
    return last_error(workdir, open_shards, finished, now)


# ---- samples ------------------------------------------------------------------------------------


def _sample_names(workdir: Path, unknown: list[str]) -> list[str]:
    """Return the samples of the sheet, or those that have results where it cannot be read.

    Raises:
        InputError: neither a sheet nor results are there.
    """
    begun = sorted(
        path.name
        for path in (workdir / "results").glob("[A-Za-z0-9]*")
        if any((path / kind).is_dir() for kind in _OF_A_SAMPLE)
    )
    sheet = workdir / _sheet_of(workdir, unknown)
    try:
        listed = _read_sheet(sheet)
    except (OSError, ValueError) as error:
        if not begun:
            raise InputError(
                "is no working directory of the workflow: it has no sample sheet and no results",
                path=workdir,
                hint="give the folder that was given to `virnucpro run -o` or `snakemake -d`",
            ) from error
        unknown.append(f"{sheet} cannot be read: the samples are those that have results")
        return begun
    return listed


def _sheet_of(workdir: Path, unknown: list[str]) -> str:
    """Return the path of the sample sheet, as the configuration has it."""
    try:
        values = yaml.safe_load((workdir / _CONFIG).read_text())
    except FileNotFoundError:
        return _SHEET
    except (OSError, ValueError, yaml.YAMLError):
        unknown.append(f"{workdir / _CONFIG} cannot be read: {_SHEET} is taken for the sheet")
        return _SHEET
    return str(values.get("samples", _SHEET)) if isinstance(values, dict) else _SHEET


def _read_sheet(path: Path) -> list[str]:
    """Return the samples of a sheet, each once, in its order.

    The workflow reads more of what spreadsheet programs write (`workflow/rules/samples.smk`), and
    refuses what is wrong.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no text, or has no column of samples.
    """
    lines = [
        line
        for line in path.read_text(encoding="utf-8-sig").splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    delimiter = next((each for each in "\t,;" if lines and each in lines[0]), "\t")
    header, *rows = csv.reader(lines, delimiter=delimiter) if lines else [[]]
    column = [cell.strip().lower() for cell in header].index("sample")
    return list(dict.fromkeys(row[column].strip() for row in rows if len(row) > column))


# ---- rates --------------------------------------------------------------------------------------


def _rates(workdir: Path, shards_of: dict[str, list[ShardStatus]], unknown: list[str]) -> Rates:
    running = [s for shards in shards_of.values() for s in shards if s.state == "running"]
    said = [shard.tokens_per_second for shard in running if shard.tokens_per_second is not None]
    if len(said) < len(running):
        unknown.append(f"{len(running) - len(said)} job(s) under way have said no rate yet")
    budget = _budget(workdir, unknown)
    return Rates(
        now=sum(said) if said else None,
        achieved=_achieved(workdir, shards_of, unknown),
        planned=budget.tokens_per_second if budget else None,
        device=budget.device if budget else None,
    )


def _budget(workdir: Path, unknown: list[str]) -> Budget | None:
    """Read the newest token budget; None where none is measured or it is damaged."""
    path = newest(workdir / "resources" / "token_budget")
    if path is None:
        return None
    try:
        return read_budget(path)
    except (VirnucproError, OSError) as error:
        unknown.append(f"the planned rate is not known: {str(error).splitlines()[0]}")
        return None


def _achieved(
    workdir: Path, shards_of: dict[str, list[ShardStatus]], unknown: list[str]
) -> float | None:
    """Return the tokens a second of the steps of the shards that were finished last."""
    finished = sorted(
        (shard.finished, name, shard.name, shard.steps)
        for name, shards in shards_of.items()
        for shard in shards
        if shard.finished is not None
    )
    step_logs = []
    for _, name, shard, steps in finished[-_RATED:]:
        folder = newest(workdir / "results" / name / "embeddings")
        try:
            step_logs.append(read_step_log(folder or workdir, shard, steps))
        except (VirnucproError, OSError) as error:
            unknown.append(f"a rate is left out: {str(error).splitlines()[0]}")
    if not step_logs:
        return None
    totals, _ = summarise_step_logs(step_logs, [0] * len(step_logs))
    return totals.tokens_per_second


def _time_left(tokens: int, rates: Rates) -> tuple[float | None, str | None]:
    """Return the seconds that tokens will take, and what that rests on."""
    if tokens <= 0:
        return 0.0, None
    for rate, why in (
        (rates.now, "the jobs that are under way go on as they do now"),
        (rates.achieved, "one device, at the rate of the shards that were finished last"),
        (rates.planned, "one device, at the rate of the token budget"),
    ):
        if rate:
            return round(tokens / rate, 1), why
    return None, None
