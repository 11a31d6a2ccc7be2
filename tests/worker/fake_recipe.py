"""A stand-in for a recipe: the process contract without torch. How it behaves comes from the environment's ``TMPDIR``-side file.

``python tests/worker/fake_recipe.py <folder>/spec.json``; ``behavior.json`` three folders up (beside ``runs/``) may say
``{"seconds": 0.01, "exit": 3, "at": 7, "only": 1, "deaf": true, "hang": true, "wait_for": "path"}``. The loss of step n is a
function of the state, which a checkpoint saves, so a run that goes on from one must give the curve of a run without a break.
"""

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from backend.runs import events as said  # noqa: E402
from backend.runs.specs import Launch  # noqa: E402

stop = False


def asked(signum: int, frame: Any) -> None:
    global stop
    stop = True


def write_manifest(folder: Path) -> None:
    """``manifest.json`` over the folder's files."""
    entries = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        entries.append({"name": path.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    (folder / "manifest.json").write_text(json.dumps(entries))


def main(path: Path) -> int:
    launch = Launch.model_validate_json(path.read_text())
    behavior_at = launch.folder.parents[2] / "behavior.json"
    behavior: dict[str, Any] = json.loads(behavior_at.read_text()) if behavior_at.exists() else {}
    if behavior.get("only", launch.attempt) != launch.attempt:
        behavior = {key: value for key, value in behavior.items() if key == "seconds"}
    signal.signal(signal.SIGTERM, signal.SIG_IGN if behavior.get("deaf") else asked)
    out = os.open(launch.folder / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(event: Any) -> None:
        os.write(out, event.model_dump_json().encode() + b"\n")

    print("the stand-in begins", flush=True)
    if behavior.get("grandchild"):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    if behavior.get("cannot_work"):
        say(said.Failed(reason="The rows are empty.", remedy="Choose others.", trace="Traceback …"))
        return 78
    step, state = 0, 1.0
    if launch.resume_from is not None:
        saved = json.loads((launch.resume_from / "state.json").read_text())
        step, state = saved["step"], saved["state"]
    total, every = launch.spec.optimization.steps, launch.spec.checkpoints.every_steps
    say(
        said.Started(
            total_steps=total,
            first_step=step,
            train_rows=9,
            held_out_rows=1,
            trainable_parameters=1,
            total_parameters=1,
            device="cpu",
        )
    )

    def save() -> None:
        final = launch.folder / "checkpoints" / f"step-{step}"
        written = final.with_suffix(".tmp")
        written.mkdir(parents=True)
        (written / "state.json").write_text(json.dumps({"step": step, "state": state}))
        write_manifest(written)
        written.rename(final)
        os.fsync(out)
        say(said.Checkpoint(step=step, folder=f"checkpoints/step-{step}"))

    while step < total:
        time.sleep(behavior.get("seconds", 0.005))
        step += 1
        state = (state * 1.618033 + step) % 1.0
        say(said.Metrics(step=step, values={"loss": state, "grad_norm": "nan" if step == 3 else state * 2}))
        if step == behavior.get("at"):
            if behavior.get("hang"):
                time.sleep(600)
            if "exit" in behavior:
                print("out of luck", file=sys.stderr, flush=True)
                os._exit(behavior["exit"])
        if stop or step % every == 0 or step == total:
            save()
        if stop:
            say(said.Finished(outcome="stopped", step=step))
            return 0
    model = launch.folder / "model"
    model.mkdir()
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", state))
    (model / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    say(said.Finished(outcome="completed", step=step, model="model"))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
