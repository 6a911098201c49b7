"""The command line: ``python integration/benchmarks/serving``."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from lmcache_beluga.cli.bench_report import machine, versions
from lmcache_beluga.quantities import parse_size
from lmcache_beluga.signals import terminable

from .backends import BACKENDS
from .clock import Clock
from .environment import gpus as gpus_here
from .environment import vllm_versions
from .ports import ports_from
from .result_file import ResultFile, ResultFileError
from .run import Planned, Run, planned
from .settings import Settings, model_config
from .workloads import NAMES, Scale, phases_of

EPILOG = """\b
Backends: {backends}
Workloads: {workloads}
\b
Examples:
  python integration/benchmarks/serving --model DIR --backends none,cpu,beluga --json out.json
  python integration/benchmarks/serving --model DIR --backends redis,resp --json out.json --append
  python integration/benchmarks/serving --cpu --quick --backends none,beluga --json look.json
  python integration/benchmarks/serving report out.json --markdown out.md --plots plots
  python integration/benchmarks/serving generate-trace --help
""".format(backends=", ".join(BACKENDS), workloads=", ".join(NAMES))

#: What differs where nothing was given: with GPUs, and without, which is a rehearsal.
_DEFAULTS: dict[str, dict[bool, Any]] = {
    "lengths": {False: "8192,32768", True: "512,1536"},
    "pool_size": {False: "48GiB", True: "512MiB"},
    "staging_size": {False: "20GiB", True: "512MiB"},
    "max_num_batched_tokens": {False: 16384, True: 2048},
    "block_size": {False: 0, True: 128},
    "kv_cache_size": {False: "36GiB", True: "1GiB"},
}

_TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1024,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


def _names(known: tuple[str, ...]) -> Any:
    def split(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
        for name in names:
            if name not in known:
                raise click.BadParameter(f"{name!r} is none of {', '.join(known)}", ctx, param)
        return names

    return split


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    if value is None:
        return None
    try:
        numbers = tuple(int(number) for number in value.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(f"{value!r}: give numbers, with commas between", ctx, param)
    return numbers


def _numbers_or_none(ctx: click.Context, param: click.Parameter, value: str) -> Any:
    return () if value == "0" else _numbers(ctx, param, value)


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_size(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} ({error}): give 48GiB, say", ctx, param) from None


def _settings_of_connector(
    ctx: click.Context, param: click.Parameter, value: str
) -> dict[str, Any]:
    try:
        found = json.loads(value)
    except json.JSONDecodeError as error:
        raise click.BadParameter(f"no JSON ({error})", ctx, param) from None
    if not isinstance(found, dict):
        raise click.BadParameter("give a JSON object", ctx, param)
    return found


FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(epilog=EPILOG)
@click.option("--model", type=FOLDER, help="Folder with config.json. Needed but for --cpu.")
@click.option(
    "--backends", default="none,cpu,beluga", show_default=True, callback=_names(tuple(BACKENDS))
)
@click.option("--workloads", default="documents", show_default=True, callback=_names(NAMES))
@click.option("--json", "json_file", type=FILE, required=True, help="Where results go.")
@click.option("--append", is_flag=True, help="Add to what that file has.")
@click.option("--quick", is_flag=True, help="Smaller and shorter: a look, not a measurement.")
@click.option("--lengths", callback=_numbers, help="Tokens of prompts: 8192,32768.")
@click.option("--output-tokens", default=8, show_default=True, type=click.IntRange(min=1))
@click.option("--count", type=click.IntRange(min=1), help="Prompts of each length.")
@click.option(
    "--hits",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="How often each is asked for again, one at a time.",
)
@click.option(
    "--bursts",
    default="8,32",
    show_default=True,
    callback=_numbers_or_none,
    help="How many requests at once; 0: no bursts.",
)
@click.option("--trace", type=FILE, help="JSON lines as Mooncake's, for the workload trace.")
@click.option("--trace-requests", type=click.IntRange(min=1), help="Of the trace, at most.")
@click.option(
    "--trace-skip", type=click.IntRange(min=0), help="Requests left out at its beginning."
)
@click.option("--trace-time-scale", type=float, help="Times its arrival times; 0.5: twice as fast.")
@click.option("--trace-length-scale", type=float, help="Times its lengths.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--warm-up-tokens", default=16384, show_default=True, help="Of its longest prompt.")
@click.option("--seed", default=0, show_default=True)
@click.option("--chunk-size", default=256, show_default=True, help="Of LMCache, in tokens.")
@click.option(
    "--hash-algorithm", default="builtin", show_default=True, help="Of LMCache in process."
)
@click.option("--server-hash-algorithm", default="blake3", show_default=True)
@click.option("--pool-size", callback=_size, help="Of each tier.  [48GiB; with --cpu 512MiB]")
@click.option("--staging-size", callback=_size, help="LMCache's own memory before other tiers.")
@click.option("--prefault/--no-prefault", default=True, show_default=True)
@click.option("--disk", type=FOLDER, help="For the backend disk.  [default: /dev/shm]")
@click.option("--mooncake-protocol", default="tcp", show_default=True, help="tcp or rdma")
@click.option("--mooncake-device", default="", help="Of the NIC, for rdma.")
@click.option(
    "--together",
    is_flag=True,
    help="Start all backends at once; they take turns, phase by phase. Memory must allow it.",
)
@click.option("--limit-s", type=float, help="For everything. What does not fit is left out.")
@click.option("--backend-limit-s", type=float, help="For one backend, start included.")
@click.option("--start-s", default=300.0, show_default=True, help="For vLLM to start.")
@click.option("--settle-s", default=60.0, show_default=True, help="For a tier to have stored.")
@click.option("--vllm-python", default=sys.executable, help="The interpreter that has vLLM.")
@click.option("--vllm-args", default="", help="More options of vllm serve, in one string.")
@click.option(
    "--connector-config",
    default="{}",
    callback=_settings_of_connector,
    help="Of LMCache's connector to its servers: '{\"lmcache.mp.eager_prefetch\": true}'.",
)
@click.option(
    "--gpu",
    "gpus",
    multiple=True,
    help="CUDA_VISIBLE_DEVICES of an instance; once per instance.  [default: two on GPU 0]",
)
@click.option("--gpu-memory-utilization", default=0.42, show_default=True)
@click.option(
    "--kv-cache-size",
    callback=_size,
    help="Of each instance; 0: as vLLM finds.  [36GiB: two that start on one GPU cannot look]",
)
@click.option(
    "--storing-kv-cache-size",
    callback=_size,
    default="0",
    help="Of instance 0 where the other one is asked for hits.  [as of the other]",
)
@click.option("--max-num-seqs", default=64, show_default=True)
@click.option("--max-num-batched-tokens", type=int, help="[16384; with --cpu 2048]")
@click.option("--max-model-len", default=0, help="[default: what the workloads need]")
@click.option("--block-size", type=int, help="Of vLLM.  [vLLM's; with --cpu 128]")
@click.option("--load-format", default="dummy", show_default=True)
@click.option("--prefix-caching", is_flag=True, help="vLLM's own too, in the GPU's memory.")
@click.option(
    "--api-servers",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Processes of each instance that read requests; vLLM's --api-server-count.",
)
@click.option("--cuda-graphs", is_flag=True, help="Without vLLM's --enforce-eager.")
@click.option("--cpu", is_flag=True, help="vLLM without a GPU: a rehearsal, with a tiny model.")
@click.option("--port", default=18500, show_default=True, help="The first; 0: any.")
@click.option("--logs", type=FOLDER, default=Path("/tmp/serving-logs"), show_default=True)
def serving(**options: Any) -> None:
    """Measure vLLM over one KV cache after the other: same model, same prompts.

    Each backend gets two vLLM instances. What one has stored, the other is asked for; where
    instances share nothing, the one that stored is asked, and the row says so. Results are in the
    file as soon as a backend has ended.

    Exit status: 0 if all backends ran, also if some are not installed; 1 if one failed.
    """
    console = Console(highlight=False, soft_wrap=True)
    clock = Clock(options["limit_s"])

    def say(text: str) -> None:
        console.print(f"[{clock.elapsed_s:7.1f} s] {text}", markup=False)

    options["logs"].mkdir(parents=True, exist_ok=True)
    for name, values in _DEFAULTS.items():
        if options.get(name) is None:
            default = values[options["cpu"]]
            parse = _numbers if name == "lengths" else _size
            given = parse(None, None, default) if isinstance(default, str) else default  # type: ignore[arg-type]
            options[name] = given
    settings, plan, vocabulary = _prepare(options, say)
    file = _file(options, settings)
    run = Run(
        settings=settings,
        plan=plan,
        file=file,
        folder=options["logs"],
        ports=ports_from(options["port"]),
        clock=clock,
        say=say,
        vocabulary=vocabulary,
        warm_up_tokens=options["warm_up_tokens"],
        backend_limit_s=options["backend_limit_s"],
    )
    with terminable():
        try:
            if options["together"]:
                run.together(options["backends"])
            else:
                run.one_after_the_other(options["backends"])
        finally:
            file.write()
            say(f"results are in {file.path}")
    if any(name in file.failed for name in options["backends"]):
        raise SystemExit(1)


def _prepare(options: dict[str, Any], say: Any) -> tuple[Settings, list[Planned], int]:
    model = options["model"] or _tiny_model(options)
    if not (model / "config.json").exists():
        raise click.UsageError(f"{model} has no config.json")
    config = model_config(model)
    scale = Scale(
        seed=options["seed"],
        vocabulary=int(config["vocab_size"]),
        lengths=options["lengths"],
        output_tokens=options["output_tokens"],
        quick=options["quick"],
        count=options["count"] or (1 if options["quick"] else 3),
        hits=options["hits"],
        bursts=options["bursts"],
        trace=options["trace"],
        replay=_replay(options),
    )
    makes = {name: partial(phases_of, name, scale) for name in options["workloads"]}
    plan = planned(makes, 1 if options["quick"] else options["repeats"])
    longest = max(
        len(request.prompt) + request.output_tokens
        for one in plan
        for request in one.phase.requests
    )
    allowed = int(config.get("max_position_embeddings", longest))
    if longest > allowed:
        raise click.UsageError(f"a prompt and its answer have {longest} tokens, {model} {allowed}")
    requests = sum(len(one.phase.requests) for one in plan)
    say(f"{len(plan)} phases, {requests} requests, of at most {longest} tokens")
    gpus = options["gpus"] or (("", "") if options["cpu"] else ("0", "0"))
    settings = Settings(
        model=model.resolve(),
        python=options["vllm_python"],
        gpus=tuple(gpus),
        cpu=options["cpu"],
        load_format=options["load_format"],
        max_model_len=options["max_model_len"] or min(allowed, longest + 64),
        max_num_seqs=options["max_num_seqs"],
        max_num_batched_tokens=options["max_num_batched_tokens"],
        gpu_memory_utilization=options["gpu_memory_utilization"],
        kv_cache_bytes=options["kv_cache_size"],
        storing_kv_cache_bytes=options["storing_kv_cache_size"],
        block_size=options["block_size"],
        eager=not options["cuda_graphs"],
        prefix_caching=options["prefix_caching"],
        api_servers=options["api_servers"],
        vllm_args=tuple(shlex.split(options["vllm_args"])),
        connector=options["connector_config"],
        chunk=options["chunk_size"],
        hash_algorithm=options["hash_algorithm"],
        server_hash_algorithm=options["server_hash_algorithm"],
        pool_bytes=options["pool_size"],
        staging_bytes=options["staging_size"],
        prefault=options["prefault"],
        disk=options["disk"],
        mooncake_protocol=options["mooncake_protocol"],
        mooncake_device=options["mooncake_device"],
        first_port=options["port"],
        start_s=options["start_s"],
        settle_s=options["settle_s"],
    )
    return settings, plan, scale.vocabulary


def _replay(options: dict[str, Any]) -> dict[str, Any]:
    given = {
        "count": options["trace_requests"],
        "skip": options["trace_skip"],
        "time_scale": options["trace_time_scale"],
        "length_scale": options["trace_length_scale"],
    }
    return {name: value for name, value in given.items() if value is not None}


def _tiny_model(options: dict[str, Any]) -> Path:
    if not options["cpu"]:
        raise click.UsageError("name a model with --model")
    folder: Path = options["logs"] / "tiny-model"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_TINY))
    return folder


def _file(options: dict[str, Any], settings: Settings) -> ResultFile:
    try:
        found = versions() | vllm_versions(settings.python)
    except (OSError, subprocess.SubprocessError) as error:
        raise click.UsageError(f"--vllm-python {settings.python}: {error}") from None
    workload = {
        name: options[name]
        for name in (
            *("lengths", "output_tokens", "count", "hits", "bursts", "seed", "quick", "repeats"),
            "together",
        )
    }
    emulated = ["vllm: on a CPU, with a tiny model"] if settings.cpu else []
    if settings.load_format == "dummy":
        emulated.append("vllm: weights are not those of a trained model")
    file = ResultFile(
        path=options["json_file"],
        command=[shlex.join(["python", *sys.argv])],
        machine=machine() | gpus_here(),
        versions=found,
        settings=settings.as_json() | workload,
        emulated=emulated,
    )
    if options["append"]:
        try:
            file.add_to_existing()
        except (ResultFileError, OSError, ValueError, KeyError) as error:
            raise click.UsageError(f"--append: {error}") from None
    return file


#: Imported when they are asked for: plots need more than measuring does.
_COMMANDS = {
    "report": ("report_command", "report"),
    "generate-trace": ("trace_command", "generate_trace"),
}


def main() -> None:
    """Run the command with the process's arguments; does not return."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in _COMMANDS:
        module, function = _COMMANDS[name]
        command = getattr(import_module(f".{module}", __package__), function)
        command(sys.argv[2:], prog_name=f"serving {name}")
    serving(prog_name="serving")
