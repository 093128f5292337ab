"""What is there and does it work: `csg-edge info`, `doctor` and `verify`."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from csg_edge.cli.options import bundle_argument, bundle_option, json_option, need, print_json


@click.command()
@bundle_argument
@click.option(
    "--graph",
    "graph",
    is_flag=True,
    help="Parameters, MACs, activations and operators per stage; precision per engine.",
)
@json_option
def info(bundle: str, graph: bool, as_json: bool) -> None:
    """What a bundle holds."""
    from csg_edge.bundle.manifest import find_bundle, read_bundle

    checked = read_bundle(find_bundle(bundle))
    manifest = checked.manifest
    if graph:
        need("onnx", extra="build")
        from csg_edge.export.inspect import inspect_bundle, report_lines

        report = inspect_bundle(checked)
        if as_json:
            print_json(report)
        else:
            click.echo("\n".join(report_lines(report)))
        return
    if as_json:
        print_json({"path": str(checked.path), **asdict(manifest)})
        return
    height, width = manifest.image_size
    click.echo(f"{manifest.name} (made by csg-edge {manifest.producer}) in {checked.path}")
    click.echo(f"images    {height} x {width}, noise {' x '.join(map(str, manifest.noise_shape))}")
    if manifest.fibre_shape:
        click.echo(f"fibres    field of {' x '.join(map(str, manifest.fibre_shape))}, given or drawn")
    click.echo("classes   " + ", ".join(f"{index} {name}" for index, name in enumerate(manifest.labels)))
    for engine in manifest.engines:
        built = f", {engine.built_with}" if engine.built_with else ""
        click.echo(
            f"engine    {engine.target}, {engine.steps} step{'s' * (engine.steps > 1)}: {engine.file} "
            f"({engine.state}{built})"
        )
    total = sum(entry.size for entry in manifest.files.values())
    click.echo(f"golden    {len(manifest.golden)} cases")
    click.echo(f"files     {len(manifest.files)}, {total / 1e6:.1f} MB, all hashes match")


@click.command()
@bundle_option
@json_option
def doctor(bundle: str, as_json: bool) -> None:
    """What this machine can run."""
    from csg_edge.generation.doctor import examine

    report = examine(bundle)
    if as_json:
        print_json(report)
        return
    for key in ("csg_edge", "python", "system", "processor", "cores"):
        click.echo(f"{key:<10} {report[key]}")
    quota = report["processor_quota"]
    limit = "no quota" if quota is None else f"a quota of {quota:g}, so {report['default_threads']} threads by default"
    click.echo(f"granted    {report['allowed_processors']} processors by affinity, {limit}")
    for name, runtime in report["runtimes"].items():
        if "missing" in runtime:
            click.echo(f"{name:<12} missing: {runtime['missing']}")
        else:
            click.echo(f"{name:<12} {runtime['version']}" + (f": {runtime['note']}" if "note" in runtime else ""))
            for device, about in runtime["devices"].items():
                click.echo(f"  {device}: {about['name']} {' '.join(about.get('precisions', []))}".rstrip())
    for name, state in report["extras"].items():
        click.echo(f"extra      {name}: {state}")
    for conflict in report["conflicts"]:
        click.echo(f"conflict   {conflict}")
    bundle_report = report["bundle"]
    if "error" in bundle_report:
        click.echo(f"bundle     {bundle_report['error']}")
    else:
        for engine, state in bundle_report["engines"].items():
            verdict = bundle_report["verdicts"].get(engine)
            click.echo(f"engine     {engine}: {state}" + (f", {verdict}" if verdict else ""))
        for steps, choice in bundle_report["auto"].items():
            click.echo(f"auto       steps {steps}: {choice}")
    cache = report["cache"]
    click.echo(f"cache      {cache['folder']}: {cache['entries']} entries, {cache['bytes'] / 1e6:.1f} MB")


@click.command()
@bundle_argument
@json_option
def verify(bundle: str, as_json: bool) -> None:
    """Run the golden cases of a bundle on this machine. Exits with 1 if an engine fails or none can run."""
    from csg_edge.bundle.manifest import find_bundle, read_bundle
    from csg_edge.generation.verify import verify_bundle

    results = verify_bundle(read_bundle(find_bundle(bundle)))
    good = all(result.status != "failed" for result in results) and any(result.status == "passed" for result in results)
    if as_json:
        rows = [{**asdict(result), "worst": result.worst and result.worst.to_json()} for result in results]
        print_json({"bundle": bundle, "passed": good, "engines": rows})
    else:
        for result in results:
            line = f"{result.status:<8} {result.target}, {result.steps} step{'s' * (result.steps > 1)}"
            if result.worst:
                worst = result.worst
                line += (
                    f" (computing in {result.effective_precision}): worst difference {worst.max_levels} grey levels, "
                    f"mean {worst.mean_levels:.3f}, p99 {worst.p99_levels:g}, "
                    f"{100 * worst.share_within_1:.2f} % within 1, PSNR {worst.psnr:.1f} dB, SSIM {worst.ssim:.4f}"
                )
            click.echo(line + (f": {result.reason}" if result.reason else ""))
    sys.exit(0 if good else 1)
