"""What was measured, as text, JSON, a plot, the table in the README and that by which the ops choose their backend."""

import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from . import choice, peers, provenance, registry
from .case import Case
from .floor import Floor
from .timing import Result

FORMAT = 1
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def to_json(result: Result, floor: Floor) -> dict:
    """A case and its rows; times in milliseconds."""

    def milliseconds(seconds: float | None) -> float | None:
        return None if seconds is None else float(f"{1e3 * seconds:.4g}")

    case = result.case
    return {
        "name": case.name,
        "op": case.op.name,
        "shape": dict(case.shape),
        "dtype": case.dtype,
        "backward": case.backward,
        "baseline": case.baseline,
        "bytes_moved": case.bytes_moved,
        "operations": case.operations,
        "floor_ms": milliseconds(floor.seconds(case)),
        "floor_by_bytes_ms": milliseconds(floor.by_bytes(case)),
        "floor_by_operations_ms": milliseconds(floor.by_operations(case)),
        "status": "ok" if result.ok else "FAILED",
        "rows": [
            {
                "variant": row.variant,
                "ours": row.ours,
                "computes": row.computes,
                "status": row.status,
                "reason": row.reason,
                "median_ms": milliseconds(row.median),
                "p20_ms": milliseconds(row.p20),
                "p80_ms": milliseconds(row.p80),
                "samples": row.samples,
                "extra_mb": None if row.extra_bytes is None else round(row.extra_bytes / 1e6, 1),
                "errors": {name: float(f"{error:.3g}") for name, error in row.errors.items()},
            }
            for row in result.rows
        ],
    }


def document(cases: list[dict], floor: Floor, where: dict, settings: dict) -> dict:
    """Everything that a results file holds."""
    return {
        "format": FORMAT,
        "provenance": where,
        "settings": settings,
        "floor": {
            "copy_gb_per_s": round(floor.copy / 1e9, 1),
            "products_gflop_per_s": {name: round(rate / 1e9, 1) for name, rate in floor.products.items()},
        },
        "cases": cases,
        "summary": summary(cases),
    }


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of either."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, content: dict) -> None:
    """Write a results file atomically."""
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict:
    """A results file. Raises ValueError where it is none."""
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path.name} is not a results file of format {FORMAT}: measure again")
    return content


# Text


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _sizes(case: dict) -> str:
    return ", ".join(f"{name} {size}" for name, size in case["shape"].items())


def _other(row: dict) -> str:
    """What a row's variant computes instead of the op; "" where it computes the op."""
    return row.get("computes", "")


def case_text(case: dict) -> str:
    """The table of one case."""
    floor = case["floor_ms"]
    lines = [
        f"{case['name']}   {_sizes(case)}, {case['dtype']}   floor {_number(floor)} ms "
        f"({_number(case['floor_by_bytes_ms'])} by bytes, {_number(case['floor_by_operations_ms'])} by operations)"
    ]
    if case["status"] == "FAILED":
        lines.append("  FAILED: no timing")
        lines += [
            f"    {row['variant']}: {row['reason'] or 'ok'}" for row in case["rows"] if row["status"] != "unavailable"
        ]
        return "\n".join(lines)
    lines.append(
        f"  {'':28}{'median ms':>10}{'p20':>9}{'p80':>9}{'samples':>9}{'x baseline':>12}{'x floor':>9}{'extra MB':>10}"
        f"{'error':>9}"
    )
    baseline = next((row["median_ms"] for row in case["rows"] if row["variant"] == case["baseline"]), None)
    for row in case["rows"]:
        if row["status"] == "unavailable":
            lines.append(f"  {row['variant']:28}  {row['reason']}")
            continue
        median = row["median_ms"]
        speed = f"{baseline / median:.2f}" if baseline else ""
        error = f"{max(row['errors'].values()):.1e}" if row["errors"] else "-" if _other(row) else "law"
        remark = f"  computes another function: {_other(row)}" if _other(row) else ""
        lines.append(
            f"  {row['variant']:28}{_number(median):>10}{_number(row['p20_ms']):>9}{_number(row['p80_ms']):>9}"
            f"{row['samples']:>9}{speed:>12}{_number(median / floor):>9}{_number(row['extra_mb']):>10}{error:>9}"
            f"{remark}"
        )
    return "\n".join(lines)


def head_text(content: dict) -> str:
    """Machine, versions and floor of a results file."""
    where, floor = content["provenance"], content["floor"]
    machine = where["cpu"]["model"]
    if where["gpu"]:
        gpu = where["gpu"]
        machine = f"{gpu['name']}, driver {gpu['driver']}, CUDA {gpu['cuda']}, Triton {where['triton']}; {machine}"
    products = ", ".join(f"{name} {rate:.0f}" for name, rate in floor["products_gflop_per_s"].items())
    allocator = ", ".join(f"{name}={value}" for name, value in where["allocator"].items()) or "as the system has it"
    return "\n".join(
        [
            f"{machine}; {where['cpu']['usable_cpus']} CPUs, {where['torch_threads']} threads; torch {where['torch']}, "
            f"Python {where['python']}; commit {where['commit']}, kernels {where['kernel_hash']}; {where['date']}",
            f"floor: copy {floor['copy_gb_per_s']} GB/s (read + written); GFLOP/s: {products}",
            f"allocator: {allocator}; load average at the start: {where['load_average']}",
        ]
    )


# Summary: what the rows say about one another


def _timed(case: dict | None) -> list[dict]:
    return [row for row in case["rows"] if row["median_ms"] is not None] if case else []


def _best(case: dict | None) -> dict | None:
    """The fastest of our rows."""
    return min((row for row in _timed(case) if row["ours"]), key=lambda row: row["median_ms"], default=None)


def _against_everybody(case: dict | None) -> list[str]:
    """How a case of ours stands to each of its peers and to its floor."""
    ours = _best(case)
    if case is None or ours is None:
        return []
    ratios = []
    for row in _timed(case):
        if not row["ours"]:
            remark = f" ({_other(row)})" if _other(row) else ""
            ratios.append(f"{row['variant']}{remark} {_number(row['median_ms'] / ours['median_ms'])}")
    if not ratios:
        return []
    return [
        f"`{case['name']}`, {ours['variant']}, {_number(ours['median_ms'])} ms: times faster than {'; '.join(ratios)}; "
        f"{_number(ours['median_ms'] / case['floor_ms'])} times the floor"
    ]


def _growth(short: dict | None, long: dict | None) -> list[str]:
    """Time and memory a frame of a long sequence against a short one, for each of our backends."""
    lines = []
    for row in _timed(long):
        before = next((x for x in _timed(short) if x["variant"] == row["variant"] and row["ours"]), None)
        if before is None or short is None or long is None:
            continue
        figures = []
        for key, unit in (("median_ms", "ms"), ("extra_mb", "MB extra")):
            if row[key] is not None and before[key]:
                now, then = (1e3 * x[key] / c["shape"]["T"] for x, c in ((row, long), (before, short)))
                figures.append(f"{_number(now)} {unit} ({now / then:.2f} times as much)")
        lines.append(
            f"{row['variant']}, {'forward + backward' if long['backward'] else 'forward'}, 1000 frames of "
            f"T {long['shape']['T']} against T {short['shape']['T']}: {', '.join(figures)}"
        )
    return lines


def _half_against_float(case: dict | None) -> list[str]:
    whole = next((row for row in _timed(case) if row["variant"] == registry.IN_FLOAT32.name), None)
    if case is None or whole is None:
        return []
    return [
        f"{row['variant']}, `{case['name']}`: {_number(row['median_ms'] / whole['median_ms'])} times float32's time"
        for row in _timed(case)
        if row["ours"] and row is not whole
    ]


def _call_overhead(case: dict | None) -> list[str]:
    plain = next((row for row in _timed(case) if row["variant"] == peers.SDPA_NO_MASK.name), None)
    if case is None or plain is None:
        return []
    return [
        f"call overhead, `{case['name']}`: {row['variant']} {_number(1e3 * row['median_ms'])} µs, "
        f"{_number(row['median_ms'] / plain['median_ms'])} times SDPA without a mask"
        for row in _timed(case)
        if row["ours"]
    ]


def _rivals(cases: list[dict]) -> list[str]:
    """How our two backends of a GPU stand to one another, an op a line."""
    ratios: dict[str, list[float]] = {}
    for case in cases:
        times = {row["variant"]: row["median_ms"] for row in _timed(case) if row["ours"]}
        if {"sinmdm cuda", "sinmdm triton"} <= times.keys():
            ratios.setdefault(case["op"], []).append(times["sinmdm cuda"] / times["sinmdm triton"])
    return [
        f"{op}: sinmdm cuda takes {_number(statistics.geometric_mean(of_op))} times sinmdm triton's time, from "
        f"{_number(min(of_op))} to {_number(max(of_op))} over {len(of_op)} cases"
        for op, of_op in ratios.items()
    ]


def _attention_share(step: dict, layer: dict | None) -> list[str]:
    """The attention's share in a training step: its own row at one layer's shape, times the layers."""
    lines = []
    for row in _timed(step):
        alone = next((x for x in _timed(layer) if x["variant"] == row["variant"]), None)
        share = ""
        if alone is not None:
            total = step["shape"]["layers"] * alone["median_ms"]
            share = f", of it attention {_number(total)} ms ({100 * total / row['median_ms']:.1f} %)"
        lines.append(f"`{step['name']}` with {row['variant']}: {_number(row['median_ms'])} ms{share}")
    return lines


def summary(cases: list[dict]) -> list[str]:
    """The figures that need more than one row, a line each; those whose rows were not measured are left out."""
    named = {case["name"]: case for case in cases if case["status"] == "ok"}

    def find(*sizes: int, **options: Any) -> dict | None:
        return named.get(registry.attention_case(*sizes, **options).name)

    lines = []
    for T, w, backward in ((4096, 16, False), (4096, 16, True), (8192, 512, False), (8192, 512, True)):
        lines += _against_everybody(find(T, w, backward=backward))
    on_gpu: dict[str, Any] = {"dtype": "bfloat16"}
    for B, T, w in ((8, 4096, 16), (4, 16384, 128)):
        for backward in (False, True):
            lines += _against_everybody(find(T, w, B=B, backward=backward, **on_gpu))
    lines += _rivals(list(named.values()))
    for backward in (False, True):
        lines += _growth(find(4096, backward=backward), find(65536, backward=backward))
        short, long = (find(T, B=8, backward=backward, **on_gpu) for T in (1024, 4096))
        lines += _growth(short, long)
    for backward in (False, True):
        lines += _half_against_float(find(4096, dtype="bfloat16", backward=backward))
    lines += _call_overhead(find(64))
    for case in named.values():
        if case["op"] == "training_step":
            layer = registry.attention_of(case["name"].split("-")[1]).name
            lines += _attention_share(case, named.get(layer))
    return lines


# Plot


def plot(cases: list[dict], path: Path) -> str | None:
    """Time against T and against the window, on logarithmic axes. Returns why there is no plot, or None."""
    panels = []
    for title, axis, keep in (
        ("window_attention, forward", "T", lambda c: not c["backward"] and c["shape"]["w"] == 16),
        ("window_attention, forward + backward", "T", lambda c: c["backward"] and c["shape"]["w"] == 16),
        ("window_attention, forward, T 4096", "w", lambda c: not c["backward"] and c["shape"]["T"] == 4096),
    ):
        attention = (c for c in cases if c["op"] == "window_attention")
        on_gpu = any(c["dtype"] == "bfloat16" and c["shape"]["B"] > 1 for c in attention)
        usual = {"dtype": "bfloat16" if on_gpu else "float32", "B": 8 if on_gpu else 1, "H": 8, "D": 64}
        points = [
            c
            for c in cases
            if c["op"] == "window_attention"
            and c["status"] == "ok"
            and {"dtype": c["dtype"]} | {name: c["shape"][name] for name in "BHD"} == usual
            and keep(c)
        ]
        points.sort(key=lambda c: c["shape"][axis])
        if len(points) >= 2:
            panels.append((title, axis, points))
    if not panels:
        return "no op was measured at two sizes"
    try:
        import matplotlib
    except ImportError:
        return "matplotlib is not installed"
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 4.2), squeeze=False, layout="constrained")
    names = list(dict.fromkeys(row["variant"] for _, _, points in panels for c in points for row in c["rows"]))
    remarks = {
        row["variant"]: f" ({_other(row)})"
        for _, _, points in panels
        for c in points
        for row in c["rows"]
        if _other(row)
    }
    for plotted, (title, axis, points) in zip(axes[0], panels, strict=True):
        for index, name in enumerate(names):
            line = [
                (c["shape"][axis], row["median_ms"])
                for c in points
                for row in c["rows"]
                if row["variant"] == name and row["median_ms"] is not None
            ]
            if line:
                ours = name.startswith("sinmdm")
                plotted.plot(
                    *zip(*line, strict=True),
                    marker="o" if ours else ".",
                    linewidth=2.2 if ours else 1.2,
                    color=f"C{index}",
                    label=name + remarks.get(name, ""),
                )
        sizes = [c["shape"][axis] for c in points]
        plotted.plot(sizes, [c["floor_ms"] for c in points], "k:", label="floor")
        plotted.set(title=title, xscale="log", yscale="log", ylabel="milliseconds")
        plotted.set_xlabel("T, frames" if axis == "T" else "window, frames each side")
        plotted.set_xticks(sizes, [str(size) for size in sizes])
        plotted.minorticks_off()
        plotted.grid(alpha=0.3)
    labels = {
        label: line for plotted in axes[0] for line, label in zip(*plotted.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=4, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    os.replace(temporary, path)
    return None


# README


def _by_default(measured: dict) -> list[dict]:
    """Our rows but for the reference's, if there are others; first the one whose backend a call takes by default."""
    rows = [row for row in _timed(measured) if row["ours"] and row["variant"] != registry.IN_FLOAT32.name]
    chosen = [f"sinmdm {name}" for name in choice.backends_for(measured)]
    rows.sort(key=lambda row: row["variant"] not in chosen)
    return [row for row in rows if row["variant"] != "sinmdm reference"] or rows


def _markdown_row(case: Case, measured: dict | None, stale: bool) -> str:
    if measured is None:
        return f"| `{case.name}` | not measured | | | | | | |"
    name = f"`{case.name}`" + (" (stale)" if stale else "")
    if measured["status"] == "FAILED":
        return f"| {name} | FAILED | | | | | | |"
    timed = _timed(measured)
    fast = _by_default(measured)
    ours = fast[0] if fast else None
    baseline = next((row for row in timed if row["variant"] == measured["baseline"]), None)
    others = sorted((row for row in timed if not row["ours"]), key=lambda row: row["median_ms"])
    same, unlike = ([row for row in others if bool(_other(row)) == wanted] for wanted in (False, True))
    if ours is None:
        return f"| `{case.name}` | not measured | | | | | | |"
    time = ", ".join(f"{_number(row['median_ms'])} ({row['variant'].removeprefix('sinmdm ')})" for row in fast)
    usual = f"{_number(baseline['median_ms'])} ({baseline['variant']})" if baseline else ""
    best, biasless = (f"{_number(x[0]['median_ms'])} ({x[0]['variant']})" if x else "" for x in (same, unlike))
    gains = [f"{_number(x[0]['median_ms'] / ours['median_ms'])}" for x in ([baseline], same, unlike) if x and x[0]]
    return (
        f"| {name} | {time} | {usual} | {best} | {biasless} | {' / '.join(gains)} | {_number(measured['floor_ms'])} |"
        f" {_number(ours['median_ms'] / measured['floor_ms'])} |"
    )


COLUMNS = (
    "case", "sinmdm, ms (backend)", "torch's own way, ms", "fastest peer, ms", "fastest without bias, ms",
    "times faster than each", "floor, ms", "times the floor",
)  # fmt: skip


def markdown(contents: list[dict], today: str | None = None) -> str:
    """The README's table, one for each device that has a results file; rows that need measuring say so, and a kind of
    device without a file does. The speed-ups are those of the backend that stands first, which a call takes by default.
    """
    today = today or provenance.kernel_hash()
    parts = [_device_table(content, content["provenance"]["device"], today) for content in contents]
    missing = {"cpu", "cuda"} - {content["provenance"]["device"] for content in contents}
    if "cpu" in missing:
        parts.insert(0, _device_table(None, "cpu", today))
    if "cuda" in missing:
        waiting = len(registry.select(None, "cuda", quick=False))
        parts.append(f"NVIDIA GPU: not measured; {waiting} cases wait for `python -m bench --device cuda`.")
    return "\n\n".join(parts)


def _device_table(content: dict | None, device: str, today: str) -> str:
    measured = {case["name"]: case for case in content["cases"]} if content else {}
    stale = content is not None and provenance.is_stale(content["provenance"], today)
    lines = [f"{line}  " for line in head_text(content).splitlines()] if content else ["Nothing is measured yet."]
    if stale:
        command = "python -m bench" + (" --device cuda" if device == "cuda" else "")
        lines.append(f"**Stale: the kernels have changed since; run `{command}`.**")
    lines += [
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|" + "---|" * len(COLUMNS),
        *(_markdown_row(case, measured.get(case.name), stale) for case in registry.select(None, device, quick=False)),
    ]
    lines += ["", *(f"- {line}" for line in summary(content["cases"]))] if content else []
    return "\n".join(lines)


def load_results(folder: Path) -> list[dict]:
    """The full results of every device that was measured, CPU first."""
    contents = [read_json(path) for path in sorted(folder.glob("*-full.json"))]
    return sorted(contents, key=lambda content: content["provenance"]["device"])


def update_readme(path: Path, table: str) -> bool:
    """Put `table` between the markers of a README; True where that changed it.

    Raises ValueError where the file has not exactly one pair of markers, and FileNotFoundError where there is no file.
    """
    text = path.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{path.name} needs one line {BEGIN} and, after it, one line {END}")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    updated = f"{head}{BEGIN}\n{table}\n{END}{tail}"
    if updated != text:
        write_atomically(path, updated.encode())
    return updated != text


def update_choice(path: Path, contents: list[dict]) -> bool:
    """Write choice.json from results files; True where that changed it. Raises ValueError where none is of a GPU."""
    text = json.dumps(choice.table(contents), indent=1, allow_nan=False) + "\n"
    if path.exists() and path.read_text() == text:
        return False
    write_atomically(path, text.encode())
    return True
