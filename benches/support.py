"""What the comparisons share: a virtual environment for the other tools, interleaved runs, a table, a JSON file."""
import datetime, json, os, pathlib, platform, statistics, subprocess, sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def environment(folder, packages):
    """Python of a virtual environment with these packages, made if it is not there. It must lie outside the repository."""
    folder = pathlib.Path(folder).expanduser().resolve()
    if folder == ROOT or ROOT in folder.parents:
        sys.exit(f"{folder}: the virtual environment must lie outside of the repository")
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making {folder} with {', '.join(packages)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def program(name):
    """A program of this repository, built in release."""
    subprocess.run(["cargo", "build", "--release", "-p", name], cwd=ROOT, check=True)
    target = subprocess.run(["cargo", "metadata", "--no-deps", "--format-version", "1"], cwd=ROOT, check=True, capture_output=True)
    return pathlib.Path(json.loads(target.stdout)["target_directory"]) / "release" / name


def last_json(command, env=None):
    """The last line a command prints, as JSON."""
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, env={**os.environ, **(env or {})})
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stderr}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def interleave(contestants, rounds):
    """Runs each (name, function giving a figure) in turn, `rounds` times; figures by name."""
    figures = {name: [] for name, _ in contestants}
    for i in range(rounds):
        for name, measure in contestants:
            figures[name].append(measure())
            print(f"round {i + 1}/{rounds} {name}: {figures[name][-1]:.2f}", file=sys.stderr)
    return figures


def machine():
    model = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.processor())
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "date": datetime.date.today().isoformat(), "revision": revision}


def saved(name):
    """The rows of benches/results/<name>.json, if there are any."""
    path = ROOT / "benches" / "results" / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def save(name, rows):
    """Writes benches/results/<name>.json."""
    path = ROOT / "benches" / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Where things lie on this machine is nobody's business.
    command = " ".join(pathlib.Path(word).name if word.startswith(("/", "~")) else word for word in sys.argv[1:])
    content = {"machine": machine(), "command": f"benches/{name} {command}", "rows": rows}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"saved: {path}")


def summary(values):
    return {"best": max(values), "median": statistics.median(values), "all": values}
