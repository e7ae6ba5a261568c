"""The status of a run for people, and as one line."""

from __future__ import annotations

from virnucpro.status.run import RunStatus
from virnucpro.status.samples import SampleStatus

__all__ = ["describe_status", "progress_line"]

_SAID = {"running": "under way", "silent": "without a sign"}  # in place of the state's own word
_LISTED = 20  # samples that are not done, and sentences on what is unknown


def describe_status(status: RunStatus) -> str:
    """Lay the status of a run out in lines."""
    unfinished = [sample for sample in status.samples if sample.step != "done"]
    lines = [f"{len(status.samples) - len(unfinished)} of {len(status.samples)} samples are done"]
    lines += [f"  {sample.name}: {_describe_sample(sample)}" for sample in unfinished[:_LISTED]]
    if len(unfinished) > _LISTED:
        lines.append(f"  and {len(unfinished) - _LISTED} more")
    rates = status.tokens_per_second
    lines += [
        f"shards      {_counts(status.shards) or 'none yet'}",
        f"sequences   {_of(status.sequences_done, status.sequences)}, in shards that are done",
        f"tokens      {_of(status.tokens_done, status.tokens)}",
        f"tokens/s    now {_number(rates.now)}; on a device: achieved {_number(rates.achieved)}, "
        f"planned {_number(rates.planned)}" + (f" ({rates.device})" if rates.device else ""),
        f"time left   {_left(status)}",
    ]
    if error := status.last_error:
        lines += [
            f"last error  {error.error}",
            f"            {_duration(error.seconds_ago)} ago, in {error.log}",
        ]
    unknown = [*status.unknown, *(each for sample in status.samples for each in sample.unknown)]
    lines += [f"not known   {sentence}" for sentence in unknown[:_LISTED]]
    if len(unknown) > _LISTED:
        lines.append(f"            and {len(unknown) - _LISTED} more; --json has all")
    return "\n".join(lines)


def progress_line(status: RunStatus) -> str:
    """Say how far a run is in one line."""
    done = sum(sample.step == "done" for sample in status.samples)
    share = f"{100 * status.tokens_done / status.tokens:.0f}%" if status.tokens else "0%"
    parts = [
        f"{done}/{len(status.samples)} samples",
        f"shards: {_counts(status.shards) or 'none yet'}",
        f"{share} of {status.tokens:,} tokens",
    ]
    if status.tokens_per_second.now:
        parts.append(f"{status.tokens_per_second.now:,.0f} tokens/s")
    if status.seconds_left:
        parts.append(f"{_duration(status.seconds_left)} left")
    return "virnucpro: " + ", ".join(parts)


def _describe_sample(sample: SampleStatus) -> str:
    """Say what a sample is at, and how far."""
    what = f"{sample.step} {_SAID.get(sample.state, sample.state)}"
    if sample.tokens is None:
        return what
    tokens = _of(sample.tokens_done, sample.tokens)
    return f"{what}; shards: {_counts(sample.shards)}; tokens: {tokens}"


def _counts(shards: dict[str, int]) -> str:
    return ", ".join(
        f"{number:,} {_SAID.get(state, state)}" for state, number in shards.items() if number
    )


def _of(done: int, total: int) -> str:
    share = f" ({100 * done / total:.1f}%)" if total else ""
    return f"{done:,} of {total:,}{share}"


def _number(rate: float | None) -> str:
    return "not known" if rate is None else f"{rate:,.0f}"


def _left(status: RunStatus) -> str:
    if status.seconds_left is None:
        return "not known: nothing is split yet, or no rate is measured"
    if status.left_by is None:
        return "none for the shards that are known"
    return f"about {_duration(status.seconds_left)}, if {status.left_by}"


def _duration(seconds: float) -> str:
    """Round a time to what an estimate is good for."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:,.0f} s"
