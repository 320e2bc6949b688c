"""What a person reads: the conditions, then a line or two for each row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from racing.rows import Row

__all__ = ["Table"]

_VERDICTS = {None: "", True: "ok", False: "OVER"}


class Table:
    """Prints rows as they come; those that count requests have columns of their own."""

    def __init__(self) -> None:
        self._counts: bool | None = None

    def head(self, conditions: dict[str, Any]) -> None:
        """Print what was raced, where and with what."""
        print(
            "{size} in {place}, medians of {repeat}; {small:,} small artifacts of 1 KiB; {large}"
            " for peak memory, {large remote} with buckets\n{platform}, {cores} cores; Python"
            " {python}, optuna {optuna}, blake3 {blake3}, pyfastcdc {pyfastcdc}, boto3 {boto3},"
            " google-cloud-storage {google-cloud-storage}".format(**conditions)
        )
        if proxy := conditions["proxy"]:
            print(
                "The proxy passes {up MB/s:,} MB/s up and {down MB/s:,} down over one connection"
                " and adds {added us per request} us to a request".format(**proxy)
            )
        # More than a little: what else runs now is in the figures.
        if (conditions["load"] or 0) > 1:
            print(f"The machine is busy (load {conditions['load']:.1f}): expect noise.")

    def row(self, result: dict[str, Any], row: Row) -> None:
        """Print a row, and before it what its columns are, where they are others."""
        counts = row.unit == "requests"
        if counts != self._counts:
            self._counts = counts
            print(_COUNTS_HEAD if counts else _FIGURES_HEAD)
        if "skipped" in result:
            print(f"{row.name:42}skipped: {result['skipped']}")
        elif counts:
            print(f"{row.name:36}{_passed(result['ours'])}  {_verdict(result)}".rstrip())
            print(f"{'  ' + row.reference:36}{_passed(result['theirs'])}")
        else:
            ours, theirs = (_figure(result[side], row.unit) for side in ("ours", "theirs"))
            ratio = "" if result["ratio"] is None else f"{result['ratio']:.2f}"
            line = f"{row.name:42}{ours:>10}{theirs:>12}  {row.reference:18}{ratio:>6}  "
            print(f"{line}{_verdict(result)}".rstrip())


_FIGURES_HEAD = f"\n{'':42}{'ours':>10}{'reference':>12}  {'':18}{'ratio':>6}  bound"

_COUNTS_HEAD = (
    f"\n{'':36}{'requests':>9}{'sent':>12}{'received':>12}{'trips':>7}{'0 ms':>10}{'30 ms':>10}"
    f"  bound of requests"
)


def _passed(passed: dict[str, Any]) -> str:
    return (
        f"{passed['requests']:>9}{_bytes(passed['sent']):>12}{_bytes(passed['received']):>12}"
        f"{passed['round_trips']:>7}{_figure(passed['seconds'], 's'):>10}"
        f"{_figure(passed['late_seconds'], 's'):>10}"
    )


def _verdict(result: dict[str, Any]) -> str:
    return f"{result.get('bound', '-'):14} {_VERDICTS[result.get('ok')]}"


def _bytes(count: int) -> str:
    for factor, name in ((2**20, "MiB"), (2**10, "KiB")):
        if count >= factor:
            return f"{count / factor:.1f} {name}"
    return f"{count} B"


def _figure(value: float, unit: str) -> str:
    if unit == "MiB":
        return f"{value:.1f} MiB"
    for factor, name in ((1, "s"), (1e3, "ms")):
        if value * factor >= 1:
            return f"{value * factor:.2f} {name}" if factor == 1 else f"{value * factor:.1f} {name}"
    return f"{value * 1e6:.1f} us"
